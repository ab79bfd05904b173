/* Finds the end of the head of an opening request, and rejects bytes that cannot begin one. Python parses the head;
 * this file only decides what must be known before the head is complete. No state, no I/O. */
#ifndef URS_HEAD_H
#define URS_HEAD_H

#include "base.h"

struct urs_head_rules {
    size_t bytes_max;                    /* of the whole head, including a PROXY header */
    bool proxy_protocol;                 /* a PROXY header, v1 or v2, may come first */
};

/* Looks for the end of the head of a request: the empty line after its fields. `data` holds all bytes received so far.
 * The first `seen` of them were passed to an earlier call, which returned 0.
 *
 * Returns the size of the head, including the PROXY header and the one empty line that may come in front of the request
 * (RFC 9112 2.2); 0 while the head is incomplete; URS_ERROR_REQUEST as soon as the bytes cannot become a request of
 * HTTP/1; URS_ERROR_TOO_BIG. Only the first byte of a complete head is checked here: the parser reports other errors
 * more precisely. */
int64_t urs_head_find(const uint8_t *data, size_t bytes, size_t seen, const struct urs_head_rules *rules);

#endif
