/* Masking, RFC 6455 5.3: XOR with a 4-byte key. Pure functions over memory; which implementation runs is
 * chosen once, from what the CPU can do. */
#ifndef URS_MASK_H
#define URS_MASK_H

#include "base.h"

/* cdef: begin */

/* Writes `bytes` bytes of `source` XOR `key` to `target`. `offset` is the position of source[0] in the frame's
 * payload, so byte i is combined with key[(offset + i) % 4]. target == source unmasks in place; target may also lie
 * anywhere before source (the ranges may overlap), or apart from it; it must not start inside source. */
void urs_mask_move(uint8_t *target, const uint8_t *source, size_t bytes, const uint8_t key[4], size_t offset);

/* Forces one implementation: "scalar", "sse2", "avx512", "avx2", "neon", or "auto" for the fastest here. All give the
 * same bytes; the shortest payloads take one path under every name. Returns 0, or -EINVAL for a name unknown on this
 * architecture, or -ENOTSUP where this CPU lacks it. Not for use while another thread is unmasking. */
int urs_mask_select(const char *name);

/* The name of the implementation in use. */
const char *urs_mask_selected(void);

/* The name of the index-th implementation that this CPU can run, slowest first; NULL past the last. */
const char *urs_mask_available(size_t index);

/* cdef: end */

#endif
