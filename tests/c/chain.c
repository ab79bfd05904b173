/* Chains alone: slices of blocks that several chains share. Runs the case that the command line names; aborts where it
 * does not hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static _Noreturn void fail(const char *condition, int line)
{
    fprintf(stderr, "line %d: does not hold: %s\n", line, condition);
    abort();
}

static uint32_t next_random(void)
{
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    return state >> 8;
}

/* A sealed block of `bytes` bytes, all of the same value. */
static struct urs_slice message(struct urs_memory *memory, size_t bytes, int value)
{
    struct urs_block *block = urs_block_new(memory, bytes);
    CHECK(block != NULL);
    memset(urs_block_data(block), value, bytes);
    urs_block_seal(block);
    return (struct urs_slice){block, URS_BLOCK_HEADROOM, URS_BLOCK_HEADROOM + (uint32_t)bytes};
}

/* Adds the slice to a chain, with a reference of its own. */
static int push_shared(struct urs_chain *chain, struct urs_memory *memory, struct urs_slice slice)
{
    urs_block_hold(slice.block);
    int error = urs_chain_push(chain, memory, slice);
    if (error != 0)
        urs_block_drop(slice.block);
    return error;
}

static void check_bytes(const struct urs_chain *chain, const uint8_t *expected, size_t bytes)
{
    CHECK(chain->bytes == bytes);
    for (uint32_t place = 0; place < chain->count; place++) {
        const struct urs_slice *slice = urs_chain_at(chain, place);
        CHECK(urs_slice_bytes(slice) > 0 && memcmp(urs_slice_data(slice), expected, urs_slice_bytes(slice)) == 0);
        expected += urs_slice_bytes(slice);
        bytes -= urs_slice_bytes(slice);
    }
    CHECK(bytes == 0);
}

/* ---- cases --------------------------------------------------------------------------------------------------- */

/* Bytes leave a chain in the order in which they were added, however they were added and removed. */
static void bytes_keep_their_order(void)
{
    enum { BYTES_MAX = 1 << 20 };
    static uint8_t model[BYTES_MAX];
    struct urs_memory memory = {0};
    struct urs_chain chains[2] = {0};
    size_t first[2] = {0}, end = 0;  /* both chains get the same bytes, and remove them at their own pace */
    for (int step = 0; step < 3000; step++) {
        size_t bytes = 1 + next_random() % (next_random() % 8 == 0 ? 6000 : 300);
        if (end + bytes > BYTES_MAX)
            break;
        memset(model + end, step, bytes);
        if (step % 2 == 0) {
            struct urs_slice slice = message(&memory, bytes, step);
            CHECK(push_shared(&chains[0], &memory, slice) == 0 && push_shared(&chains[1], &memory, slice) == 0);
            urs_slice_drop(&slice);
        } else {
            CHECK(urs_chain_write(&chains[0], &memory, model + end, bytes) == 0);
            CHECK(urs_chain_write(&chains[1], &memory, model + end, bytes) == 0);
        }
        end += bytes;
        for (int index = 0; index < 2; index++) {
            size_t taken = next_random() % (chains[index].bytes + 1) / (index == 0 ? 1 : 4);
            urs_chain_consume(&chains[index], taken);
            first[index] += taken;
            check_bytes(&chains[index], model + first[index], end - first[index]);
        }
    }
    urs_chain_consume(&chains[0], chains[0].bytes);
    urs_chain_consume(&chains[1], chains[1].bytes);
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

/* Each slow reader of a message costs a slice, not a copy; the last one that has read it frees it. */
static void memory_grows_with_messages(void)
{
    enum { READERS = 1000, BYTES = 1 << 20 };
    static struct urs_chain readers[READERS];
    struct urs_memory memory = {0};
    struct urs_slice slice = message(&memory, BYTES, 7);
    size_t once = memory.bytes_used;
    for (int reader = 0; reader < READERS; reader++)
        CHECK(push_shared(&readers[reader], &memory, slice) == 0);
    urs_slice_drop(&slice);
    CHECK(memory.bytes_used <= once + READERS * 128);
    for (int reader = 0; reader < READERS; reader++) {
        CHECK(memory.bytes_used >= once);
        urs_chain_consume(&readers[reader], BYTES);
        CHECK(readers[reader].ring == NULL);  /* an idle session costs nothing */
    }
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

/* Bytes of one session never come to lie in a block that others share, and many small ones among large shared ones take
 * a small multiple of their size. */
static void own_bytes_stay_apart(void)
{
    struct urs_memory memory = {0};
    struct urs_chain chain = {0};
    struct urs_slice slice = message(&memory, 300, 1);
    size_t before = memory.bytes_used;
    for (int round = 0; round < 1000; round++) {
        CHECK(push_shared(&chain, &memory, slice) == 0);
        CHECK(urs_chain_write(&chain, &memory, (const uint8_t *)"own bytes", 9) == 0);
        CHECK(urs_chain_at(&chain, chain.count - 1)->block != slice.block);
    }
    CHECK(chain.bytes == 1000 * 309);
    CHECK(memory.bytes_used - before < 1000 * 9 + 2 * 2000 * sizeof(struct urs_slice) + (1 << 17));
    urs_chain_consume(&chain, chain.bytes);
    urs_slice_drop(&slice);
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

/* A budget that refuses leaves the chain with what it had. */
static void a_refusal_changes_nothing(void)
{
    struct urs_memory memory = {.bytes_max = 20000};
    struct urs_chain chain = {0};
    struct urs_slice slice = message(&memory, 5000, 3);
    uint32_t count = 0;
    while (push_shared(&chain, &memory, slice) == 0)
        count++;
    CHECK(count > 4 && chain.count == count && chain.bytes == count * 5000);
    CHECK(push_shared(&chain, &memory, slice) == URS_ERROR_MEMORY_BUDGET);
    CHECK(urs_chain_write(&chain, &memory, urs_slice_data(&slice), 5000) == URS_ERROR_MEMORY_BUDGET
          || memory.bytes_used <= memory.bytes_max);
    CHECK(memory.bytes_used <= memory.bytes_max);
    urs_chain_consume(&chain, chain.bytes);
    urs_slice_drop(&slice);
    CHECK(memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

/* The end of a holder frees the blocks that nobody else holds. The shares of all holders add up to the memory. */
static void a_shared_block_is_counted_once(void)
{
    enum { HOLDERS = 4 };
    struct urs_memory memory = {0};
    struct urs_chain chains[HOLDERS] = {0};
    size_t shares = 0;
    struct urs_slice slice = message(&memory, 100000, 1);
    size_t shared = memory.bytes_used;
    for (int index = 0; index < HOLDERS; index++) {
        CHECK(push_shared(&chains[index], &memory, slice) == 0);
        for (int times = 0; times < index; times++)
            CHECK(push_shared(&chains[index], &memory, slice) == 0);
        CHECK(urs_chain_write(&chains[index], &memory, urs_slice_data(&slice), 10) == 0);
    }
    urs_slice_drop(&slice);
    for (int index = 0; index < HOLDERS; index++) {
        struct urs_holding holding = {0};
        urs_chain_measure(&chains[index], &holding);
        CHECK(holding.freed_bytes > 0 && holding.freed_bytes < 5000 && holding.share_bytes > holding.freed_bytes);
        shares += holding.share_bytes;
    }
    CHECK(shares <= memory.bytes_used && shares > memory.bytes_used - 16);
    for (int index = 0; index < HOLDERS; index++) {
        struct urs_holding holding = {0};
        urs_chain_measure(&chains[index], &holding);
        size_t before = memory.bytes_used;
        urs_chain_consume(&chains[index], chains[index].bytes);
        CHECK(memory.bytes_used == before - holding.freed_bytes);
        CHECK((holding.freed_bytes >= shared) == (index == HOLDERS - 1));
    }
    urs_memory_clear(&memory);
}

/* Appended bytes follow the ones before, also while others hold the block, and while the front is used up. */
static void a_slice_grows_at_its_end(void)
{
    static uint8_t model[1 << 18];
    struct urs_memory memory = {0};
    struct urs_slice slice = {0};
    size_t first = 0, end = 0;
    while (end + 3000 < sizeof model) {
        size_t bytes = 1 + next_random() % 3000;
        memset(model + end, (int)next_random(), bytes);
        struct urs_slice part = slice;
        if (part.block != NULL)
            urs_block_hold(part.block);
        CHECK(urs_slice_append(&slice, &memory, model + end, bytes, 2 * bytes) == 0);
        if (part.block != NULL)
            CHECK(memcmp(urs_slice_data(&part), model + first, urs_slice_bytes(&part)) == 0);
        urs_slice_drop(&part);
        end += bytes;
        size_t used = next_random() % urs_slice_bytes(&slice);
        slice.start += (uint32_t)used;
        first += used;
        CHECK(urs_slice_bytes(&slice) == end - first && memcmp(urs_slice_data(&slice), model + first, end - first) == 0);
    }
    memory.bytes_max = memory.bytes_used;
    struct urs_slice before = slice;
    while (urs_slice_append(&slice, &memory, model, 3000, 3000) == 0)
        before = slice;
    CHECK(memcmp(&before, &slice, sizeof slice) == 0);
    CHECK(urs_slice_append(&slice, &memory, model, UINT32_MAX, 0) < 0);
    urs_slice_drop(&slice);
    CHECK(slice.block == NULL && memory.bytes_used == 0);
    urs_memory_clear(&memory);
}

int main(int count, char **arguments)
{
    static const struct { const char *name; void (*run)(void); } cases[] = {
        {"bytes_keep_their_order", bytes_keep_their_order},
        {"memory_grows_with_messages", memory_grows_with_messages},
        {"own_bytes_stay_apart", own_bytes_stay_apart},
        {"a_refusal_changes_nothing", a_refusal_changes_nothing},
        {"a_shared_block_is_counted_once", a_shared_block_is_counted_once},
        {"a_slice_grows_at_its_end", a_slice_grows_at_its_end},
    };
    for (size_t index = 0; count == 2 && index < URS_COUNT(cases); index++) {
        if (strcmp(arguments[1], cases[index].name) == 0) {
            cases[index].run();
            return 0;
        }
    }
    return 2;
}
