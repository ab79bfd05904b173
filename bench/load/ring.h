/* One io_uring, and pools of buffers for its receives, set up as this suite's C programs need them: one thread,
 * completions run only when it asks for them. */
#ifndef LOAD_RING_H
#define LOAD_RING_H

#include <liburing.h>
#include <stdint.h>

struct ring {
    struct io_uring uring;
    struct pool *pools; /* a list of all that were opened on it */
};

/* Ends the program, naming the cause, if the kernel has no such ring. */
void ring_open(struct ring *ring, unsigned submissions, unsigned completions);

/* A free SQE; submits what is queued if there is none. */
struct io_uring_sqe *ring_sqe(struct ring *ring);

/* Submits what is queued. Sends which the socket takes at once have completed when it returns. */
void ring_submit(struct ring *ring);

#define RING_NO_TIMEOUT UINT64_MAX

/* Gives returned buffers to the kernel, submits everything, and waits until there is a completion or the time is over.
 * A timeout of 0 does not wait. */
void ring_turn(struct ring *ring, uint64_t timeout_nanoseconds);

/* What receives do with the bytes that arrive. */
enum pool_use {
    POOL_READ,   /* each buffer has memory of its own */
    POOL_DISCARD /* the kernel drops the bytes and says how many there were: nothing is copied, nothing can be read */
};

/* A ring of provided buffers. */
struct pool {
    struct io_uring_buf_ring *buffers;
    uint8_t *memory;
    enum pool_use use;
    unsigned short group;
    unsigned count; /* a power of two */
    unsigned buffer_bytes;
    unsigned returned; /* since the last turn, not yet visible to the kernel */
    struct pool *next;
};

/* `group` is unique within the ring. The pool stays where it is. */
void pool_open(struct pool *pool, struct ring *ring, unsigned short group, enum pool_use use, unsigned count,
               unsigned buffer_bytes);

/* Prepares a receive into the pool's buffers that goes on until it fails, the peer ends or the buffers do. */
void pool_receive(const struct pool *pool, struct io_uring_sqe *sqe, int fd);

static inline unsigned pool_buffer_of(const struct io_uring_cqe *cqe)
{
    return cqe->flags >> IORING_CQE_BUFFER_SHIFT;
}

static inline uint8_t *pool_memory(const struct pool *pool, unsigned buffer)
{
    return pool->use == POOL_DISCARD ? pool->memory : pool->memory + (size_t)buffer * pool->buffer_bytes;
}

/* The buffer may be filled again from the next turn on. */
static inline void pool_return(struct pool *pool, unsigned buffer)
{
    io_uring_buf_ring_add(pool->buffers, pool_memory(pool, buffer), pool->buffer_bytes, (unsigned short)buffer,
                          io_uring_buf_ring_mask(pool->count), (int)pool->returned++);
}

#endif
