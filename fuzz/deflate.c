/* Fuzzes permessage-deflate: any payloads are inflated one after the other, within their limits, and any payloads come
 * out of an inflater as they went into a compressor.
 *
 * The input consists of eight bytes of decisions, then messages: two bytes of size, then the payload. */
#include "allocate.h"
#include "deflate.h"
#include "support.h"

enum { SPARE_BYTES = 1 << 20 };

/* Inflates a message and checks its limits. Returns its block, or NULL if the connection must end. */
static struct urs_block *inflate_one(struct urs_deflate **own, uint16_t terms, struct urs_memory *memory,
                                     const uint8_t *data, size_t bytes, uint64_t bytes_max)
{
    struct urs_block *message = NULL;
    uint8_t *copy = exact_copy(data, bytes);
    int error = urs_deflate_inflate(own, terms, memory, copy, bytes, bytes_max, &message);
    free(copy);
    CHECK((error == 0) == (message != NULL));
    CHECK(memory->bytes_max == 0 || memory->bytes_used <= memory->bytes_max);
    if (error == 0)
        CHECK(urs_block_bytes(message) <= bytes_max);
    return message;
}

/* Inflates the messages of a peer until one is refused. */
static void inflate_all(struct input input, uint16_t terms, uint64_t bytes_max, size_t memory_bytes_max)
{
    struct urs_memory memory = {.bytes_max = memory_bytes_max};
    struct urs_deflate *own = NULL;
    struct urs_block *message;
    do {
        size_t bytes = take_16(&input);
        const uint8_t *data = take_bytes(&input, &bytes);
        message = inflate_one(&own, terms, &memory, data, bytes, bytes_max);
        urs_block_drop(message);
    } while (message != NULL && input_left(&input) > 0);
    CHECK(memory.bytes_used == urs_deflate_memory_bytes(own));
    urs_deflate_free(own);
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

/* Sends messages through a compressor and an inflater, each with its own window. */
static void send_all(struct input input, uint16_t terms, const struct urs_deflate_rules *rules, uint32_t failing)
{
    struct urs_memory memory = {0};
    struct urs_deflate *ours = NULL;
    struct urs_deflate *theirs = NULL;
    while (input_left(&input) > 0) {
        size_t bytes = take_16(&input);
        const uint8_t *data = take_bytes(&input, &bytes);
        if (bytes == 0)
            continue;
        uint8_t *target = malloc(urs_deflate_room(bytes));
        allocations_left = failing;
        size_t written = urs_deflate_compress(&ours, terms, rules, &memory, data, bytes, target);
        allocations_left = 0;
        CHECK(written <= urs_deflate_room(bytes));
        if (written > 0) {
            struct urs_block *message = inflate_one(&theirs, terms, &memory, target, written, SPARE_BYTES);
            CHECK(message != NULL && urs_block_bytes(message) == bytes);
            CHECK(memcmp(urs_block_data(message), data, bytes) == 0);
            urs_block_drop(message);
        }
        free(target);
    }
    urs_deflate_free(ours);
    urs_deflate_free(theirs);
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input input = {.next = data, .end = data + bytes};
    uint8_t flags = take_byte(&input);
    uint16_t window_bits = (uint16_t)(9 + (flags & 7) % 7);
    uint16_t terms = (uint16_t)(window_bits | window_bits << 4);
    if (flags & 8)
        terms |= URS_DEFLATE_SERVER_TAKEOVER | URS_DEFLATE_CLIENT_TAKEOVER;
    uint8_t effort = take_byte(&input);
    const struct urs_deflate_rules rules = {.level = (uint8_t)(1 + effort % 9),
                                            .memory_level = (uint8_t)(1 + effort / 9 % 9)};
    uint32_t limit = take_16(&input);
    size_t memory_bytes_max = (size_t)take_16(&input) * 16;
    uint32_t failing = take_16(&input) % 64;
    if (flags & 16) {
        send_all(input, terms, &rules, failing);
    } else {
        allocations_left = failing;
        inflate_all(input, terms, limit, memory_bytes_max);
        allocations_left = 0;
    }
    return 0;
}
