/* Messages that Python keeps to send them any number of times: framed once, in a block that holds nothing else. Such a
 * block never changes. It is charged to no budget and belongs to no reactor: any thread may read it and drop it. */
#ifndef URS_PREPARED_H
#define URS_PREPARED_H

#include "base.h"
#include "block.h"

/* cdef: begin */

enum urs_prepared_limit { URS_PREPARED_BYTES_MAX = 0x7fffff00 };  /* the largest payload */

/* Returns a block with one reference and the whole frame of a message, or NULL if there is no memory. */
struct urs_block *urs_prepared_new(uint8_t opcode, const uint8_t *data, size_t bytes);

/* Returns the payload, which urs_prepared_payload_bytes bytes long. */
uint8_t *urs_prepared_payload(struct urs_block *prepared);

size_t urs_prepared_payload_bytes(const struct urs_block *prepared);

/* cdef: end */

#endif
