/* One io_uring, and pools of buffers for its receives, set up as the C programs of this suite need them: one thread,
 * and completions run only when the thread asks for them. */
#ifndef LOAD_RING_H
#define LOAD_RING_H

#include <liburing.h>
#include <stdint.h>

struct ring {
    struct io_uring uring;
    struct pool *pools; /* a list of all pools opened on the ring */
};

/* Ends the program with the cause if the kernel cannot provide such a ring. */
void ring_open(struct ring *ring, unsigned submissions, unsigned completions);

/* Returns a free SQE; submits the queued ones if there is none. */
struct io_uring_sqe *ring_sqe(struct ring *ring);

/* Submits the queued SQEs. Sends that the socket takes at once have completed when it returns. */
void ring_submit(struct ring *ring);

#define RING_NO_TIMEOUT UINT64_MAX

/* Gives returned buffers to the kernel, submits everything, and waits until a completion has arrived or the time is
 * over. A timeout of 0 does not wait. */
void ring_turn(struct ring *ring, uint64_t timeout_nanoseconds);

/* How receives treat the bytes that arrive. */
enum pool_use {
    POOL_READ,   /* each buffer has its own memory */
    POOL_DISCARD /* the kernel drops the bytes and reports only their number: nothing is copied, nothing can be read */
};

/* A ring of provided buffers. */
struct pool {
    struct io_uring_buf_ring *buffers;
    uint8_t *memory;
    enum pool_use use;
    unsigned short group;
    unsigned count; /* a power of two */
    unsigned buffer_bytes;
    unsigned returned; /* buffers returned since the last turn, not yet visible to the kernel */
    struct pool *next;
};

/* `group` must be unique within the ring. The pool must not move in memory. */
void pool_open(struct pool *pool, struct ring *ring, unsigned short group, enum pool_use use, unsigned count,
               unsigned buffer_bytes);

/* Prepares a receive into the pool's buffers that continues until it fails, the peer ends, or no buffer is left. */
void pool_receive(const struct pool *pool, struct io_uring_sqe *sqe, int fd);

static inline unsigned pool_buffer_of(const struct io_uring_cqe *cqe)
{
    return cqe->flags >> IORING_CQE_BUFFER_SHIFT;
}

static inline uint8_t *pool_memory(const struct pool *pool, unsigned buffer)
{
    return pool->use == POOL_DISCARD ? pool->memory : pool->memory + (size_t)buffer * pool->buffer_bytes;
}

/* Returns a buffer; it may be filled again from the next turn on. */
static inline void pool_return(struct pool *pool, unsigned buffer)
{
    io_uring_buf_ring_add(pool->buffers, pool_memory(pool, buffer), pool->buffer_bytes, (unsigned short)buffer,
                          io_uring_buf_ring_mask(pool->count), (int)pool->returned++);
}

#endif
