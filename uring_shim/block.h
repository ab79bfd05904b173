/* Heap memory whose amount a peer can influence: reference-counted blocks, charged to one budget. Partial messages,
 * backlogs and held input are stored here. Receive buffers (pool) and the replies of one turn (outbound) are not. A
 * block is bytes only; chain.h puts parts of blocks in order. */
#ifndef URS_BLOCK_H
#define URS_BLOCK_H

#include "base.h"

/* cdef: begin */

enum urs_block_limit {
    URS_BLOCK_HEADROOM = 24,             /* bytes kept free in front, for the header of a reply; with the struct they
                                            make 64, so that the payload begins at a cache line */
    URS_BLOCK_CLASSES = 7,               /* 64 KiB .. 2 MiB by powers of two, and one class for everything larger */
    URS_BLOCK_CACHE_BYTES_MAX = 32 * 1024 * 1024 /* freed blocks kept for reuse */
};

/* A run of bytes on the heap: [URS_BLOCK_HEADROOM, end) of `bytes` has been written. Everything that refers to a part
 * of the block holds a reference; `end` only grows while there is more than one. */
struct urs_block {
    union {
        struct urs_block *next;          /* in the cache of freed blocks */
        uint64_t label;                  /* in use: the topic whose message the block is, see topics.h; 0: none */
    };
    struct urs_memory *memory;           /* the budget that the block is charged to; NULL once Python shares the
                                            block */
    size_t capacity;
    size_t end;
    uint32_t references;
    uint32_t class_index;                /* URS_BLOCK_CLASSES: the block is too small for a class */
    uint8_t bytes[];
};

/* The budget of one reactor or one ServerEngine. Zero-initialise it; bytes_max 0 means no limit. */
struct urs_memory {
    size_t bytes_used;
    size_t bytes_max;
    size_t cached_bytes;
    struct urs_block *cache[7];          /* freed blocks by class */
    uint32_t next_victim;                /* the class from which the next block is freed when the cache is full */
};

/* Takes a reference for Python. The block may now outlive its budget, so it is no longer charged to it. */
void urs_block_share(struct urs_block *block);

/* Drops one reference; the last one frees the block. NULL is allowed. A shared block may be dropped by any thread. */
void urs_block_drop(struct urs_block *block);

/* Like urs_block_drop, as a destructor that cffi calls with the payload. Bound to its block, it runs no Python code, so
 * no signal handler can raise an exception in it and keep the reference alive. */
void urs_block_drop_for(struct urs_block *block, const void *payload);

/* Gives up a reference to a block from which the kernel may still send. A block of its own pages returns them to the
 * system, which keeps their bytes until the kernel no longer needs them. A block from malloc is leaked on purpose,
 * because a later allocation would overwrite its bytes. */
void urs_block_abandon(struct urs_block *block);

/* Frees the cached blocks. */
void urs_memory_clear(struct urs_memory *memory);

/* cdef: end */

/* Takes one more reference; urs_block_drop releases it. The caller must know that the block has a reference already.
 * Another thread may drop any other reference at the same time: only this function, urs_block_drop and
 * urs_block_is_sole may access the count. */
static inline void urs_block_hold(struct urs_block *block)
{
    uint32_t before = __atomic_fetch_add(&block->references, 1, __ATOMIC_RELAXED);
    URS_ASSERT(before >= 1 && before < UINT32_MAX);
    (void)before;
}

/* Returns true if the caller's reference is the only one: then no other code can read the block or take a reference. */
static inline bool urs_block_is_sole(const struct urs_block *block)
{
    return __atomic_load_n(&block->references, __ATOMIC_ACQUIRE) == 1;
}

/* Returns the number of references. Only for a charged block, whose references all belong to the owner's thread. */
static inline uint32_t urs_block_references(const struct urs_block *block)
{
    URS_ASSERT(block->memory != NULL);
    return __atomic_load_n(&block->references, __ATOMIC_RELAXED);
}

/* Creates an empty block with one reference and room for `room` bytes after `end`. Returns NULL if the budget or the
 * heap has no room: urs_memory_error tells which. */
struct urs_block *urs_block_new(struct urs_memory *memory, size_t room);

/* Ensures room for `more` bytes after `end`. Allocates ahead up to `expected` bytes in total, and never more unless
 * `more` requires it. May replace the block by a larger one, which begins with the bytes that the old one had from
 * position `from` on (amortised O(1) per byte). On failure returns URS_ERROR_MEMORY_BUDGET or -ENOMEM and leaves *block
 * unchanged. */
int urs_block_reserve(struct urs_memory *memory, struct urs_block **block, size_t from, size_t more, size_t expected);

/* Charges memory that is no block. Returns 0 or URS_ERROR_MEMORY_BUDGET. urs_memory_refund takes it back. */
int urs_memory_charge(struct urs_memory *memory, size_t bytes);
void urs_memory_refund(struct urs_memory *memory, size_t bytes);

/* Returns URS_ERROR_MEMORY_BUDGET if `room` bytes would not fit into the budget, otherwise -ENOMEM. */
int urs_memory_error(const struct urs_memory *memory, size_t room);

static inline uint8_t *urs_block_data(struct urs_block *block) { return block->bytes + URS_BLOCK_HEADROOM; }
static inline size_t urs_block_bytes(const struct urs_block *block) { return block->end - URS_BLOCK_HEADROOM; }
static inline size_t urs_block_room(const struct urs_block *block) { return block->capacity - block->end; }

/* Allows no more bytes to be added. For a block that is complete and will be shared. */
static inline void urs_block_seal(struct urs_block *block) { block->end = block->capacity; }

#endif
