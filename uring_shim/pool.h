/* The receive pool: equal buffers in one piece of memory, sized to stay in the CPU cache. This file divides the
 * caller's memory into buffers and counts them; the I/O backend decides who may write into a buffer at a given
 * moment. */
#ifndef URS_POOL_H
#define URS_POOL_H

#include "base.h"

/* cdef: begin */

struct urs_pool {
    uint8_t *memory;
    size_t buffer_bytes;                 /* usable bytes of each buffer */
    size_t stride;                       /* from one buffer to the next: whole cache lines */
    uint32_t buffers;                    /* a power of two, 2 to 32768 */
    uint32_t in_use;                     /* taken and not yet released */
    uint32_t in_use_max;                 /* the most at any time */
};

/* Returns the bytes of memory that such a pool needs, or 0 for sizes outside the limits (buffers: a power of two from 2
 * to 32768; buffer_bytes: 256 to 16 MiB; all buffers together: less than UINT32_MAX, because the position of a message
 * in the pool is given in 32 bits). */
size_t urs_pool_bytes(uint32_t buffers, size_t buffer_bytes);

/* Divides `memory` (urs_pool_bytes of it, page-aligned) into buffers. The caller keeps the ownership of the memory, and
 * must keep it until no kernel request and no view refers to it. Returns 0 or -EINVAL. */
int urs_pool_open(struct urs_pool *pool, uint8_t *memory, uint32_t buffers, size_t buffer_bytes);

/* cdef: end */

static inline uint8_t *urs_pool_buffer(const struct urs_pool *pool, uint32_t index)
{
    return pool->memory + (size_t)index * pool->stride;
}

static inline void urs_pool_taken(struct urs_pool *pool)
{
    pool->in_use++;
    if (pool->in_use > pool->in_use_max)
        pool->in_use_max = pool->in_use;
}

#endif
