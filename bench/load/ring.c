/* The calls of liburing that may fail, and the reaction to each failure. */
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base.h"

void ring_open(struct ring *ring, unsigned submissions, unsigned completions)
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
    io_uring_register_ring_fd(&ring->uring); /* saves a little time per call; the ring also works without it */
}

/* Interrupted, timed out, or short of a resource for a moment: the next turn tries again. */
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
    for (struct pool *pool = ring->pools; pool != NULL; pool = pool->next) {
        if (pool->returned > 0)
            io_uring_buf_ring_advance(pool->buffers, (int)pool->returned);
        pool->returned = 0;
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

static void *map_pages(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        fail("cannot map %zu bytes: %s", bytes, strerror(errno));
    return memory;
}

void pool_open(struct pool *pool, struct ring *ring, unsigned short group, enum pool_use use, unsigned count,
               unsigned buffer_bytes)
{
    *pool = (struct pool){
        .use = use,
        .group = group,
        .count = count,
        .buffer_bytes = buffer_bytes,
        .memory = map_pages((size_t)buffer_bytes * (use == POOL_DISCARD ? 1 : count)),
        .buffers = map_pages(count * sizeof(struct io_uring_buf)),
        .next = ring->pools,
    };
    ring->pools = pool;
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)pool->buffers, .ring_entries = count, .bgid = group};
    int error = io_uring_register_buf_ring(&ring->uring, &registration, 0);
    if (error < 0)
        fail("cannot register a ring of provided buffers: %s", strerror(-error));
    io_uring_buf_ring_init(pool->buffers);
    for (unsigned buffer = 0; buffer < count; buffer++)
        pool_return(pool, buffer);
}

void pool_receive(const struct pool *pool, struct io_uring_sqe *sqe, int fd)
{
    /* tcp(7): with MSG_TRUNC the bytes are discarded instead of copied. */
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, pool->use == POOL_DISCARD ? MSG_TRUNC : 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = pool->group;
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; /* an armed receive on an empty socket need not try to receive first */
}
