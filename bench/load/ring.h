/* One io_uring and one ring of provided buffers, set up as this suite's C programs need them: one thread, completions
 * run only when it asks for them. */
#ifndef LOAD_RING_H
#define LOAD_RING_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

enum { RING_BUFFER_GROUP = 0 };

struct ring {
    struct io_uring uring;
    struct io_uring_buf_ring *buffers;
    uint8_t *memory;
    unsigned buffer_count; /* a power of two */
    unsigned buffer_bytes;
    unsigned buffers_returned; /* since the last turn, not yet visible to the kernel */
    bool shared_memory;
};

/* How the buffers of the ring lie in memory. */
enum ring_memory {
    RING_MEMORY_OWN,   /* each buffer has its own */
    RING_MEMORY_SHARED /* all are the same bytes: for a reader that only counts what arrives */
};

/* Ends the program, naming the cause, if the kernel has no such ring. */
void ring_open(struct ring *ring, unsigned submissions, unsigned completions, unsigned buffer_count,
               unsigned buffer_bytes, enum ring_memory memory);

/* A free SQE; submits what is queued if there is none. */
struct io_uring_sqe *ring_sqe(struct ring *ring);

/* Submits what is queued. Sends which the socket takes at once have completed when it returns. */
void ring_submit(struct ring *ring);

#define RING_NO_TIMEOUT UINT64_MAX

/* Gives returned buffers to the kernel, submits everything, and waits until there is a completion or the time is over.
 * A timeout of 0 does not wait. */
void ring_turn(struct ring *ring, uint64_t timeout_nanoseconds);

static inline uint8_t *ring_buffer(struct ring *ring, unsigned buffer)
{
    return ring->shared_memory ? ring->memory : ring->memory + (size_t)buffer * ring->buffer_bytes;
}

static inline unsigned ring_cqe_buffer(const struct io_uring_cqe *cqe)
{
    return cqe->flags >> IORING_CQE_BUFFER_SHIFT;
}

/* The buffer may be filled again from the next turn on. */
static inline void ring_buffer_return(struct ring *ring, unsigned buffer)
{
    io_uring_buf_ring_add(ring->buffers, ring_buffer(ring, buffer), ring->buffer_bytes, (unsigned short)buffer,
                          io_uring_buf_ring_mask(ring->buffer_count), (int)ring->buffers_returned++);
}

/* An SQE which receives into the ring's buffers until it fails, the peer ends or the buffers do. */
static inline void ring_prepare_receive(struct io_uring_sqe *sqe, int fd)
{
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = RING_BUFFER_GROUP;
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; /* an armed receive on an empty socket need not try first */
}

#endif
