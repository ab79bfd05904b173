/* Masking, RFC 6455 5.3: XOR with a 4-byte key. Pure functions over memory; the implementation is chosen once, by the
 * features of the CPU. */
#ifndef URS_MASK_H
#define URS_MASK_H

#include "base.h"

/* cdef: begin */

/* Writes `bytes` bytes of `source` XOR `key` to `target`. `offset` is the position of source[0] in the frame's payload,
 * so byte i is combined with key[(offset + i) % 4]. target == source unmasks in place. `target` may also start anywhere
 * in front of `source` (the ranges may overlap), or after its end; it must not start inside `source`. */
void urs_mask_move(uint8_t *target, const uint8_t *source, size_t bytes, const uint8_t key[4], size_t offset);

/* Forces one implementation: "scalar", "sse2", "avx512", "avx2", "neon", or "auto" for the fastest one on this CPU. All
 * give the same bytes; the shortest payloads take the same path under every name. Returns 0, -EINVAL for a name unknown
 * on this architecture, or -ENOTSUP if this CPU lacks it. Must not be called while another thread is unmasking. */
int urs_mask_select(const char *name);

/* The name of the implementation in use. */
const char *urs_mask_selected(void);

/* The name of the index-th implementation that this CPU can run, slowest first; NULL past the last. */
const char *urs_mask_available(size_t index);

/* cdef: end */

#endif
