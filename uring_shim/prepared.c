/* Prepared messages: made, and read again. */
#include "prepared.h"

#include <string.h>

#include "frame.h"

struct urs_block *urs_prepared_new(uint8_t opcode, const uint8_t *data, size_t bytes)
{
    struct urs_memory no_budget = {0};
    uint8_t header[URS_FRAME_ANSWER_BYTES_MAX];
    URS_ASSERT(opcode == URS_OPCODE_TEXT || opcode == URS_OPCODE_BINARY);
    if (bytes > URS_PREPARED_BYTES_MAX)
        return NULL;
    size_t header_bytes = urs_frame_write(header, opcode, true, bytes);
    struct urs_block *block = urs_block_new(&no_budget, header_bytes + bytes);
    if (block == NULL)
        return NULL;
    urs_block_share(block);              /* takes it out of the budget, */
    urs_block_drop(block);               /* with a reference that is not needed */
    URS_ASSERT(no_budget.bytes_used == 0 && urs_block_is_sole(block));
    memcpy(urs_block_data(block), header, header_bytes);
    if (bytes > 0)
        memcpy(urs_block_data(block) + header_bytes, data, bytes);
    block->end += header_bytes + bytes;
    return block;
}

/* The size of the header, which a server writes without a masking key (RFC 6455 5.2). */
static size_t header_bytes_of(const struct urs_block *prepared)
{
    size_t total = urs_block_bytes(prepared);
    if (total < 2 + 126)
        return 2;
    return total < 4 + 65536 ? 4 : URS_FRAME_ANSWER_BYTES_MAX;
}

uint8_t *urs_prepared_payload(struct urs_block *prepared)
{
    return urs_block_data(prepared) + header_bytes_of(prepared);
}

size_t urs_prepared_payload_bytes(const struct urs_block *prepared)
{
    URS_ASSERT(urs_frame_answer_bytes(urs_block_bytes(prepared) - header_bytes_of(prepared))
               == header_bytes_of(prepared));
    return urs_block_bytes(prepared) - header_bytes_of(prepared);
}
