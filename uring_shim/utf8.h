/* Incremental UTF-8 validation, RFC 3629: as strict as RFC 6455 8.1 requires (no surrogates, no overlong forms, nothing
 * above U+10FFFF). Pure functions; the caller keeps the state between two chunks. */
#ifndef URS_UTF8_H
#define URS_UTF8_H

#include "base.h"

/* cdef: begin */

/* The state between two chunks; 0 at the start of a text, and whenever a chunk ends between two code points. */
struct urs_utf8 {
    uint32_t state;
};

/* Validates the next chunk. Returns -1 if all `bytes` bytes are valid so far (the chunk may end inside a code point:
 * see urs_utf8_complete), otherwise the index of the first byte that proves the text invalid. After that the state is
 * meaningless until it is set to 0. */
ptrdiff_t urs_utf8_feed(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes);

/* Forces one implementation: "automaton" (everywhere), "avx2", "neon", or "auto" for the fastest one on this CPU.
 * Returns 0, -EINVAL for a name unknown on this architecture, or -ENOTSUP if this CPU lacks it. All implementations
 * give the same results. Must not be called while another thread is validating. */
int urs_utf8_select(const char *name);

/* cdef: end */

/* True if the text may end here. */
static inline bool urs_utf8_complete(const struct urs_utf8 *utf8) { return utf8->state == 0; }

#endif
