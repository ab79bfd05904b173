/* Blocks: allocation against the budget, growth, and a small cache of the large ones. */
#include "block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { CLASS_BYTES_MIN = 64 * 1024, GROWTH = 64, GROWN_BYTES_MIN = 4096 };

/* The class whose blocks hold `capacity` bytes, or URS_BLOCK_CACHE_CLASSES for sizes that are not cached. */
static uint32_t class_of(size_t capacity)
{
    if (capacity <= CLASS_BYTES_MIN / 2)
        return URS_BLOCK_CACHE_CLASSES;
    size_t class_bytes = CLASS_BYTES_MIN;
    for (uint32_t index = 0; index < URS_BLOCK_CACHE_CLASSES; index++, class_bytes *= 2)
        if (capacity <= class_bytes)
            return index;
    return URS_BLOCK_CACHE_CLASSES;
}

static bool fits(const struct urs_memory *memory, size_t capacity)
{
    return memory->bytes_max == 0
        || (memory->bytes_used <= memory->bytes_max && capacity <= memory->bytes_max - memory->bytes_used);
}

int urs_memory_error(const struct urs_memory *memory, size_t room)
{
    return fits(memory, room + URS_BLOCK_HEADROOM) ? -ENOMEM : URS_ERROR_MEMORY_BUDGET;
}

struct urs_block *urs_block_new(struct urs_memory *memory, size_t room)
{
    size_t capacity = room + URS_BLOCK_HEADROOM;
    uint32_t index = class_of(capacity);
    if (index < URS_BLOCK_CACHE_CLASSES)
        capacity = (size_t)CLASS_BYTES_MIN << index;
    if (!fits(memory, capacity))
        return NULL;

    /* Blocks above malloc's mmap threshold would be unmapped and faulted in again for every large message. */
    struct urs_block *block = index < URS_BLOCK_CACHE_CLASSES ? memory->cache[index] : NULL;
    if (block != NULL) {
        memory->cache[index] = block->next;
        memory->cached[index]--;
    } else {
        block = malloc(sizeof *block + capacity);
        if (block == NULL)
            return NULL;
    }
    block->next = NULL;
    block->memory = memory;
    block->capacity = capacity;
    block->start = block->end = URS_BLOCK_HEADROOM;
    block->references = 1;
    block->class_index = index;
    memory->bytes_used += capacity;
    return block;
}

void urs_block_share(struct urs_block *block)
{
    if (block->memory != NULL) {
        block->memory->bytes_used -= block->capacity;
        block->memory = NULL;
    }
    urs_block_hold(block);
}

void urs_block_drop(struct urs_block *block)
{
    if (block == NULL || __atomic_sub_fetch(&block->references, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    struct urs_memory *memory = block->memory;
    uint32_t index = block->class_index;
    if (memory == NULL) {
        free(block);
        return;
    }
    memory->bytes_used -= block->capacity;
    if (index < URS_BLOCK_CACHE_CLASSES && memory->cached[index] < URS_BLOCK_CACHE_DEPTH) {
        block->next = memory->cache[index];
        memory->cache[index] = block;
        memory->cached[index]++;
        return;
    }
    free(block);
}

int urs_block_reserve(struct urs_memory *memory, struct urs_block **block, size_t more, size_t expected)
{
    struct urs_block *old = *block;
    size_t have = old == NULL ? 0 : urs_block_bytes(old);
    if (old != NULL && urs_block_room(old) >= more)
        return 0;
    /* A multiple of what is there, but no more than was announced: a peer pays for memory with bytes it has sent. So
     * large a multiple that a message of 1 MiB is not copied while it grows; pages not written to cost nothing. */
    size_t wanted = urs_max(have + more, urs_min(expected, urs_max(GROWTH * (have + more), GROWN_BYTES_MIN)));
    struct urs_block *grown = urs_block_new(memory, wanted);
    if (grown == NULL && wanted > have + more)
        grown = urs_block_new(memory, wanted = have + more);
    if (grown == NULL)
        return urs_memory_error(memory, wanted);
    if (old != NULL) {
        memcpy(grown->bytes + grown->end, urs_block_data(old), have);
        grown->end += have;
        urs_block_drop(old);
    }
    *block = grown;
    return 0;
}

void urs_block_drop_for(struct urs_block *block, const void *payload)
{
    (void)payload;
    urs_block_drop(block);
}

void urs_memory_clear(struct urs_memory *memory)
{
    for (size_t index = 0; index < URS_BLOCK_CACHE_CLASSES; index++) {
        struct urs_block *block = memory->cache[index];
        while (block != NULL) {
            struct urs_block *next = block->next;
            free(block);
            block = next;
        }
        memory->cache[index] = NULL;
        memory->cached[index] = 0;
    }
}
