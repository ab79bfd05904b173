/* Reads and writes one frame header, RFC 6455 5.2. Pure functions; the engine knows what a frame means for its
 * connection (fragments, close). */
#ifndef URS_FRAME_H
#define URS_FRAME_H

#include "base.h"

/* cdef: begin */

enum urs_frame_limit {
    URS_FRAME_HEADER_BYTES_MAX = 14,     /* masked, 64-bit length */
    URS_FRAME_ANSWER_BYTES_MAX = 10,     /* unmasked, 64-bit length */
    URS_FRAME_CONTROL_BYTES_MAX = 125
};

/* Bits of the first byte of a header, and of the second. */
enum urs_frame_bit { URS_FRAME_FIN = 0x80, URS_FRAME_MASKED = 0x80, URS_FRAME_RSV1 = 0x40 };

enum urs_frame_rule {
    URS_FRAME_FROM_CLIENT = 1,           /* the mask bit must be set */
    URS_FRAME_FROM_SERVER = 2,           /* the mask bit must not be set */
    URS_FRAME_RSV1_ALLOWED = 4           /* RSV1 may be set in the first frame of a text or binary message, RFC 7692
                                            6 */
};

struct urs_frame_header {
    uint64_t payload_bytes;
    uint8_t masking_key[4];              /* zeros if not masked */
    uint8_t opcode;                      /* enum urs_opcode */
    bool fin;
    uint8_t rsv;                         /* bit 2: RSV1, bit 1: RSV2, bit 0: RSV3 */
    bool masked;
    uint8_t header_bytes;                /* 2 to 14 */
};

/* Reads the header at the start of `data` under `rules` (or-ed urs_frame_rule; 0 takes either mask bit). Bytes after
 * the header are ignored. Returns
 *   its size in bytes (2 to 14), with *header filled in;
 *   0 if the header is incomplete: then only header->header_bytes is set, to the minimum total size known so far;
 *   an urs_error, from URS_ERROR_RSV to URS_ERROR_MASKED, as soon as the bytes read so far prove that a rule is broken,
 *   even if the header is incomplete: *header is then meaningless. */
int urs_frame_parse(const uint8_t *data, size_t bytes, int rules, struct urs_frame_header *header);

/* Returns the size of a header without mask for a payload of that size (at most 2^63 - 1): 2, 4 or 10. */
size_t urs_frame_answer_bytes(uint64_t payload_bytes);

/* Writes a header without mask and returns its size; `target` must have room for urs_frame_answer_bytes. `opcode` may be
 * or-ed with URS_FRAME_RSV1. */
size_t urs_frame_write(uint8_t *target, uint8_t opcode, bool fin, uint64_t payload_bytes);

/* Returns true for a code that an endpoint may put in a close frame, RFC 6455 7.4 and the IANA registry: 1000-1003,
 * 1007-1014, 3000-4999. */
bool urs_frame_close_code_ok(unsigned code);

/* cdef: end */

#endif
