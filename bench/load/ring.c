#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base.h"

static void *map_pages(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        fail("cannot map %zu bytes: %s", bytes, strerror(errno));
    return memory;
}

void ring_open(struct ring *ring, unsigned submissions, unsigned completions, unsigned buffer_count,
               unsigned buffer_bytes, enum ring_memory memory)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_CQSIZE,
        .cq_entries = completions,
    };
    int error = io_uring_queue_init_params(submissions, &ring->uring, &params);
    if (error < 0)
        fail("cannot set up an io_uring: %s (Linux 6.1 or later is needed, and that neither the sysctl "
             "kernel.io_uring_disabled nor a container's seccomp profile forbids it)", strerror(-error));
    io_uring_register_ring_fd(&ring->uring); /* saves a little per call; works without */

    ring->buffer_count = buffer_count;
    ring->buffer_bytes = buffer_bytes;
    ring->shared_memory = memory == RING_MEMORY_SHARED;
    ring->memory = map_pages((size_t)buffer_bytes * (ring->shared_memory ? 1 : buffer_count));
    ring->buffers = map_pages(buffer_count * sizeof(struct io_uring_buf));
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)ring->buffers, .ring_entries = buffer_count, .bgid = RING_BUFFER_GROUP};
    error = io_uring_register_buf_ring(&ring->uring, &registration, 0);
    if (error < 0)
        fail("cannot register a ring of provided buffers: %s", strerror(-error));
    io_uring_buf_ring_init(ring->buffers);
    for (unsigned buffer = 0; buffer < buffer_count; buffer++)
        ring_buffer_return(ring, buffer);
}

/* Interrupted, out of time, or short of something that will come back: the next turn tries again. */
static void check_enter(int result)
{
    if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY)
        fail("io_uring_enter: %s", strerror(-result));
}

void ring_submit(struct ring *ring)
{
    check_enter(io_uring_submit(&ring->uring));
}

struct io_uring_sqe *ring_sqe(struct ring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    while (sqe == NULL) {
        ring_submit(ring);
        sqe = io_uring_get_sqe(&ring->uring);
    }
    return sqe;
}

void ring_turn(struct ring *ring, uint64_t timeout_nanoseconds)
{
    if (ring->buffers_returned > 0) {
        io_uring_buf_ring_advance(ring->buffers, (int)ring->buffers_returned);
        ring->buffers_returned = 0;
    }
    if (timeout_nanoseconds == 0) {
        check_enter(io_uring_submit_and_get_events(&ring->uring));
    } else if (timeout_nanoseconds == RING_NO_TIMEOUT) {
        check_enter(io_uring_submit_and_wait(&ring->uring, 1));
    } else {
        struct __kernel_timespec timeout = {.tv_sec = (int64_t)(timeout_nanoseconds / NANOSECONDS_PER_SECOND),
                                            .tv_nsec = (int64_t)(timeout_nanoseconds % NANOSECONDS_PER_SECOND)};
        struct io_uring_cqe *cqe;
        check_enter(io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &timeout, NULL));
    }
}
