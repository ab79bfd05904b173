/* Blocks: allocation against the budget, growth, and a small cache of large blocks. Small blocks come from malloc;
 * large ones have pages of their own. */
#include "block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pages.h"

enum {
    CLASS_BYTES_MIN = 64 * 1024,
    LARGE = URS_BLOCK_CLASSES - 1,       /* the class of every block larger than the other classes */
    NO_CLASS = URS_BLOCK_CLASSES,
    GROWTH = 64,
    GROWN_BYTES_MIN = 4096
};

_Static_assert(URS_COUNT(((struct urs_memory *)0)->cache) == URS_BLOCK_CLASSES, "a list for each class");
_Static_assert(offsetof(struct urs_block, bytes) + URS_BLOCK_HEADROOM == 64, "payloads begin at a cache line");

/* The total bytes of a block of that class, its struct included: whole pages. */
static size_t class_bytes(uint32_t index) { return (size_t)CLASS_BYTES_MIN << index; }

/* The class of a block that holds `capacity` bytes. A block without a class comes from malloc; one with a class has
 * pages of its own. */
static uint32_t class_of(size_t capacity)
{
    if (capacity <= CLASS_BYTES_MIN / 2)
        return NO_CLASS;
    uint32_t index = 0;
    while (index < LARGE && sizeof(struct urs_block) + capacity > class_bytes(index))
        index++;
    return index;
}

static struct urs_block *allocate(uint32_t index, size_t capacity)
{
    size_t bytes = sizeof(struct urs_block) + capacity;
    return index == NO_CLASS ? malloc(bytes) : urs_pages_take(bytes);
}

static void release(struct urs_block *block)
{
    if (block->class_index == NO_CLASS)
        free(block);
    else
        urs_pages_free(block, sizeof *block + block->capacity);
}

/* Returns a cached block with exactly that capacity, or NULL. */
static struct urs_block *take_cached(struct urs_memory *memory, uint32_t index, size_t capacity)
{
    if (index == NO_CLASS)
        return NULL;
    struct urs_block **link = &memory->cache[index];
    while (*link != NULL && (*link)->capacity != capacity)
        link = &(*link)->next;
    struct urs_block *block = *link;
    if (block != NULL) {
        URS_ASSERT(memory->cached_bytes >= capacity && block->class_index == index);
        *link = block->next;
        memory->cached_bytes -= capacity;
    }
    return block;
}

/* Frees one cached block of a class other than `index` (if `index` is LARGE, also one of LARGE itself, because these
 * blocks differ in size). So sizes in present use replace sizes used earlier. Returns false if there is none. */
static bool free_cached(struct urs_memory *memory, uint32_t index)
{
    for (uint32_t tries = 0; tries < URS_BLOCK_CLASSES; tries++) {
        uint32_t victim = memory->next_victim;
        memory->next_victim = (victim + 1) % URS_BLOCK_CLASSES;
        struct urs_block *block = memory->cache[victim];
        if (block == NULL || (victim == index && index != LARGE))
            continue;
        memory->cache[victim] = block->next;
        memory->cached_bytes -= block->capacity;
        release(block);
        return true;
    }
    return false;
}

/* Puts a block into the cache, or frees it. */
static void put_back(struct urs_memory *memory, struct urs_block *block)
{
    uint32_t index = block->class_index;
    bool keep = index != NO_CLASS && block->capacity <= URS_BLOCK_CACHE_BYTES_MAX / 2 + URS_BLOCK_HEADROOM;
    while (keep && memory->cached_bytes + block->capacity > URS_BLOCK_CACHE_BYTES_MAX)
        keep = free_cached(memory, index);
    if (!keep) {
        release(block);
        return;
    }
    block->next = memory->cache[index];
    memory->cache[index] = block;
    memory->cached_bytes += block->capacity;
}

static bool fits(const struct urs_memory *memory, size_t capacity)
{
    return memory->bytes_max == 0
        || (memory->bytes_used <= memory->bytes_max && capacity <= memory->bytes_max - memory->bytes_used);
}

int urs_memory_charge(struct urs_memory *memory, size_t bytes)
{
    if (!fits(memory, bytes))
        return URS_ERROR_MEMORY_BUDGET;
    memory->bytes_used += bytes;
    return 0;
}

void urs_memory_refund(struct urs_memory *memory, size_t bytes)
{
    URS_ASSERT(memory->bytes_used >= bytes);
    memory->bytes_used -= bytes;
}

/* Returns the capacity of a block with headroom and `room` bytes more. *index becomes its class. */
static size_t capacity_for(size_t room, uint32_t *index)
{
    size_t capacity = room + URS_BLOCK_HEADROOM;
    *index = class_of(capacity);
    return *index < LARGE ? class_bytes(*index) - sizeof(struct urs_block) : capacity;
}

int urs_memory_error(const struct urs_memory *memory, size_t room)
{
    uint32_t index;
    return fits(memory, capacity_for(room, &index)) ? -ENOMEM : URS_ERROR_MEMORY_BUDGET;
}

struct urs_block *urs_block_new(struct urs_memory *memory, size_t room)
{
    uint32_t index;
    size_t capacity = capacity_for(room, &index);
    if (!fits(memory, capacity))
        return NULL;

    /* Without a cache, pages would be unmapped and faulted in again for every large message. */
    struct urs_block *block = take_cached(memory, index, capacity);
    if (block == NULL)
        block = allocate(index, capacity);
    if (block == NULL)
        return NULL;
    block->label = 0;
    block->memory = memory;
    block->capacity = capacity;
    block->end = URS_BLOCK_HEADROOM;
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
    if (memory == NULL) {
        release(block);
        return;
    }
    URS_ASSERT(memory->bytes_used >= block->capacity);
    memory->bytes_used -= block->capacity;
    put_back(memory, block);
}

void urs_block_abandon(struct urs_block *block)
{
    if (block != NULL && block->class_index != NO_CLASS)
        urs_block_drop(block);
}

int urs_block_reserve(struct urs_memory *memory, struct urs_block **block, size_t from, size_t more, size_t expected)
{
    struct urs_block *old = *block;
    URS_ASSERT(from >= URS_BLOCK_HEADROOM && (old == NULL || from <= old->end));
    size_t have = old == NULL ? 0 : old->end - from;
    if (old != NULL && urs_block_room(old) >= more)
        return 0;
    /* Allocates a multiple of the present size, but not more than was announced: a peer can make us allocate only in
     * proportion to the bytes that it has sent. The multiple is so large that a message of 1 MiB is not copied while it
     * grows; pages that are never written cost nothing. */
    size_t wanted = urs_max(have + more, urs_min(expected, urs_max(GROWTH * (have + more), GROWN_BYTES_MIN)));
    struct urs_block *grown = urs_block_new(memory, wanted);
    if (grown == NULL && wanted > have + more)
        grown = urs_block_new(memory, wanted = have + more);
    if (grown == NULL)
        return urs_memory_error(memory, wanted);
    if (old != NULL) {
        memcpy(grown->bytes + grown->end, old->bytes + from, have);
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
    while (free_cached(memory, NO_CLASS))
        ;
    URS_ASSERT(memory->cached_bytes == 0);
}
