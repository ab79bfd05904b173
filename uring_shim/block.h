/* Heap memory whose amount a peer can influence: reference-counted blocks, drawn from one budget.
 * Partial messages, backlogs and held input live here; receive buffers (pool) and answers of one turn (outbound) do
 * not. */
#ifndef URS_BLOCK_H
#define URS_BLOCK_H

#include "base.h"

/* cdef: begin */

enum urs_block_limit {
    URS_BLOCK_HEADROOM = 16,             /* bytes kept free in front, for the header of an answer */
    URS_BLOCK_CLASSES = 7,               /* 64 KiB .. 2 MiB, by powers of two, and one for all that is larger */
    URS_BLOCK_CACHE_BYTES_MAX = 32 * 1024 * 1024 /* freed blocks that are kept for the next ones */
};

/* A run of bytes on the heap. [start, end) of `bytes` is in use. A block is in one list at a time. */
struct urs_block {
    struct urs_block *next;
    struct urs_memory *memory;           /* the budget it is charged to; NULL once Python shares it */
    size_t capacity;
    size_t start;
    size_t end;
    uint32_t references;
    uint32_t class_index;                /* URS_BLOCK_CLASSES: too small for one */
    uint8_t bytes[];
};

/* The budget of one reactor or one ServerEngine. Zero-initialise it; bytes_max 0 means no limit. */
struct urs_memory {
    size_t bytes_used;
    size_t bytes_max;
    size_t cached_bytes;
    struct urs_block *cache[7];          /* freed blocks by class */
    uint32_t next_victim;                /* the class that gives way next where the cache is full */
};

/* Takes a reference for Python. The block may now outlive its budget, so it is no longer charged to it. */
void urs_block_share(struct urs_block *block);

/* Drops one reference; the last one frees the block. NULL is allowed. A shared block may be dropped by any thread. */
void urs_block_drop(struct urs_block *block);

/* The same, as a destructor that cffi calls with the payload. Bound to its block it is C alone: no signal handler can
 * raise in it, and so keep the reference. */
void urs_block_drop_for(struct urs_block *block, const void *payload);

/* Gives up a reference to a block from which the kernel may still send. Pages go back to the system, which keeps their
 * bytes until the kernel is done with them. A block of malloc's stays for good, for others would write into it. */
void urs_block_abandon(struct urs_block *block);

/* Frees the cached blocks. */
void urs_memory_clear(struct urs_memory *memory);

/* cdef: end */

/* Takes one more reference, which urs_block_drop gives back. The caller must know that the block has one already. Any
 * other reference may be dropped by another thread meanwhile: this function, urs_block_drop and urs_block_is_sole are
 * the only ones that may touch the count. */
static inline void urs_block_hold(struct urs_block *block)
{
    uint32_t before = __atomic_fetch_add(&block->references, 1, __ATOMIC_RELAXED);
    URS_ASSERT(before >= 1 && before < UINT32_MAX);
    (void)before;
}

/* True if the caller's reference is the only one: nobody else reads the block, and nobody can take a reference. */
static inline bool urs_block_is_sole(const struct urs_block *block)
{
    return __atomic_load_n(&block->references, __ATOMIC_ACQUIRE) == 1;
}

/* A new block with one reference, start = end = URS_BLOCK_HEADROOM, and room for `room` bytes behind. NULL if the
 * budget or the heap has no room: urs_memory_error tells which. */
struct urs_block *urs_block_new(struct urs_memory *memory, size_t room);

/* Makes room for `more` bytes behind end, at most for `expected` in all unless more are asked for. Moves the block if
 * it must (amortised O(1) per byte). On failure returns URS_ERROR_MEMORY_BUDGET or -ENOMEM and leaves *block as it
 * was. */
int urs_block_reserve(struct urs_memory *memory, struct urs_block **block, size_t more, size_t expected);

/* URS_ERROR_MEMORY_BUDGET if `room` bytes would not fit the budget, else -ENOMEM. */
int urs_memory_error(const struct urs_memory *memory, size_t room);

static inline uint8_t *urs_block_data(struct urs_block *block) { return block->bytes + block->start; }
static inline size_t urs_block_bytes(const struct urs_block *block) { return block->end - block->start; }
static inline size_t urs_block_room(const struct urs_block *block) { return block->capacity - block->end; }

#endif
