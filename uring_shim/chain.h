/* Parts of blocks, and parts of blocks in order. A block may be part of many chains at the same time: each slice holds
 * one reference, so one message to many slow readers is stored once. No I/O, no policy. */
#ifndef URS_CHAIN_H
#define URS_CHAIN_H

#include "base.h"
#include "block.h"

/* cdef: begin */

/* [start, end) of the bytes of a block, and a reference to the block. `block` NULL: no bytes. */
struct urs_slice {
    struct urs_block *block;
    uint32_t start;
    uint32_t end;
};

/* Slices in order. None is empty, except that urs_chain_drop leaves an empty one without a block, which is neither the
 * first nor the last. Zero-initialise it. An empty chain holds no memory. */
struct urs_chain {
    struct urs_block *ring;              /* the slices; charged like the blocks that they refer to */
    uint32_t first;                      /* the number of the oldest slice: slices are numbered from the first one that
                                            was ever added, modulo 2^32 */
    uint32_t count;
    size_t bytes;                        /* of all slices */
};

/* cdef: end */

/* The memory of the budget that one holder holds. */
struct urs_holding {
    size_t freed_bytes;                  /* the memory that has no other holder */
    size_t share_bytes;                  /* the same, and an equal part of the memory that has several holders: the
                                            shares of all holders add up to the memory */
};

static inline uint8_t *urs_slice_data(const struct urs_slice *slice) { return slice->block->bytes + slice->start; }
static inline size_t urs_slice_bytes(const struct urs_slice *slice) { return slice->end - slice->start; }

/* Drops the slice's reference; the slice is empty then. */
void urs_slice_drop(struct urs_slice *slice);

/* Appends a copy of `bytes` bytes. The slice must end where its block ends, as a slice does that only this function
 * fills; its block may have other references. Allocates ahead up to `expected` bytes in total. Returns 0,
 * URS_ERROR_MEMORY_BUDGET or -ENOMEM (also for more than 4 GiB); the slice is unchanged then. */
int urs_slice_append(struct urs_slice *slice, struct urs_memory *memory, const uint8_t *data, size_t bytes,
                     size_t expected);

/* Adds what a holder of `references` references to the block holds by them. A block that Python shares is charged to no
 * budget and adds nothing. */
void urs_holding_add(struct urs_holding *holding, const struct urs_block *block, uint32_t references);

/* Returns the slice at that place; 0 is the oldest. */
struct urs_slice *urs_chain_at(const struct urs_chain *chain, uint32_t place);

/* Adds a slice, which must not be empty, at the end, and takes over its reference. A slice that continues the last one
 * in the same block becomes a part of it. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM; the caller still has the
 * reference then. */
int urs_chain_push(struct urs_chain *chain, struct urs_memory *memory, struct urs_slice slice);

/* Adds a copy of `bytes` bytes at the end, in the spare room of the chain's last blocks or in a new one. Returns 0,
 * URS_ERROR_MEMORY_BUDGET or -ENOMEM; a part of the bytes may have been added then. */
int urs_chain_write(struct urs_chain *chain, struct urs_memory *memory, const uint8_t *data, size_t bytes);

/* Removes the slice at that place, and its bytes. The slices keep their numbers. */
void urs_chain_drop(struct urs_chain *chain, uint32_t place);

/* Returns true if the next slice needs a larger ring. */
bool urs_chain_is_full(const struct urs_chain *chain);

/* Closes the gaps of dropped slices if they are at least a quarter of the ring. Slices get larger numbers then, but the
 * next one to be added keeps its number. *number follows the slice that has this number. */
void urs_chain_compact(struct urs_chain *chain, uint32_t *number);

/* Removes `bytes` bytes from the front. */
void urs_chain_consume(struct urs_chain *chain, size_t bytes);

/* Adds what the end of the chain would do for the budget. The time grows with the number of slices. */
void urs_chain_measure(const struct urs_chain *chain, struct urs_holding *holding);

#endif
