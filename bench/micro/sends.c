/* One ring, set up like the library's, and bursts of sends on it. A zero-copy send ends with its notification. No send
 * ever waits: it finds room, or the burst is refused. */
#define _GNU_SOURCE
#include "sends.h"

#include "clock.h"

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* Constants newer than the headers of liburing 2.3; their values are the kernel's ABI. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

enum { CQ_FACTOR = 4, HELD_BACK_MAX = 1000, PATIENCE_SECONDS = 10 };

struct loop_ring {
    struct io_uring uring;
    uint8_t *memory;
};

/* The progress of a burst. */
struct burst {
    size_t pending;                      /* sends whose buffer is not free yet */
    size_t sent;                         /* bytes */
    int error;                           /* of the first send that failed */
};

int loop_ring_open(struct loop_ring **opened)
{
    static const uint32_t ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,                            /* 6.1 */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 6.0 */
    };
    struct loop_ring *ring = calloc(1, sizeof *ring);
    int error = -EINVAL;

    if (ring == NULL)
        return -ENOMEM;
    ring->memory = mmap(NULL, LOOP_SENDS_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring->memory == MAP_FAILED) {
        free(ring);
        return -ENOMEM;
    }
    memset(ring->memory, 'x', LOOP_SENDS_BYTES_MAX); /* untouched pages would all be the same page of zeros */
    for (size_t rung = 0; rung < sizeof ladder / sizeof *ladder && error == -EINVAL; rung++) {
        struct io_uring_params params = {
            .flags = ladder[rung] | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
            .cq_entries = LOOP_SENDS_MAX * CQ_FACTOR,
        };
        error = io_uring_queue_init_params(LOOP_SENDS_MAX, &ring->uring, &params);
    }
    if (error != 0) {
        munmap(ring->memory, LOOP_SENDS_BYTES_MAX);
        free(ring);
        return error;
    }
    io_uring_register_ring_fd(&ring->uring); /* saves a little time per call; the ring also works without it */
    *opened = ring;
    return 0;
}

int loop_ring_register(struct loop_ring *ring)
{
    struct iovec vector = {.iov_base = ring->memory, .iov_len = LOOP_SENDS_BYTES_MAX};

    return io_uring_register_buffers(&ring->uring, &vector, 1);
}

void loop_ring_close(struct loop_ring *ring)
{
    io_uring_queue_exit(&ring->uring);
    munmap(ring->memory, LOOP_SENDS_BYTES_MAX);
    free(ring);
}

static void queue(struct loop_ring *ring, const struct loop_sends *s)
{
    for (size_t i = 0; i < s->count; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
        const uint8_t *data = ring->memory + i * s->bytes;
        if (s->kind == LOOP_SEND) {
            io_uring_prep_send(sqe, s->sender, data, s->bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
            continue;
        }
        io_uring_prep_send_zc(sqe, s->sender, data, s->bytes, MSG_DONTWAIT | MSG_NOSIGNAL,
                              IORING_SEND_ZC_REPORT_USAGE);
        if (s->kind == LOOP_SEND_ZC_FIXED) {
            sqe->ioprio |= IORING_RECVSEND_FIXED_BUF;
            sqe->buf_index = 0;
        }
    }
}

/* Takes the completions that have arrived. F_MORE, not the result, says whether a notification follows. */
static void collect(struct loop_ring *ring, struct loop_sends *s, struct burst *burst)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    unsigned count = 0;

    io_uring_for_each_cqe(&ring->uring, head, cqe) {
        count++;
        if ((cqe->flags & IORING_CQE_F_NOTIF) != 0) {
            s->notified++;
            s->copied += ((uint32_t)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED) != 0;
        } else if (cqe->res < 0) {
            if (burst->error == 0)
                burst->error = cqe->res == -EAGAIN ? -ENOBUFS : cqe->res;
        } else {
            burst->sent += (size_t)cqe->res;
        }
        burst->pending -= (cqe->flags & IORING_CQE_F_MORE) == 0;
    }
    io_uring_cq_advance(&ring->uring, count);
}

/* Makes the receiver acknowledge its bytes, which it would otherwise delay until they are read: only then the sender
 * frees its packets, and the kernel returns the lent buffers. */
static void acknowledge(int receiver)
{
    int yes = 1;

    setsockopt(receiver, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
}

/* Takes `bytes` bytes from the receiver without copying them. */
static int drain(int receiver, size_t bytes)
{
    while (bytes > 0) {
        ssize_t result = recv(receiver, NULL, bytes, MSG_TRUNC);
        if (result < 0 && errno == EINTR)
            continue;
        if (result <= 0)
            return result < 0 ? -errno : -ECONNRESET;
        bytes -= (size_t)result;
    }
    return 0;
}

/* Waits until no buffer is lent. */
static int wait_for_all(struct loop_ring *ring, struct loop_sends *s, struct burst *burst)
{
    while (burst->pending > 0) {
        struct __kernel_timespec patience = {.tv_sec = PATIENCE_SECONDS};
        struct io_uring_cqe *cqe;
        int error = io_uring_wait_cqe_timeout(&ring->uring, &cqe, &patience);
        if (error != 0 && error != -EINTR)
            return error;
        collect(ring, s, burst);
    }
    return 0;
}

/* Returns the nanoseconds of one burst. -EAGAIN: the burst is over, but not all bytes had arrived when the clock
 * stopped. On loopback arriving is part of sending, and for a zero-copy send it is the greater part. */
static int64_t run_burst(struct loop_ring *ring, struct loop_sends *s)
{
    struct burst burst = {.pending = s->count};
    int arrived = 0;
    int64_t start = now();

    queue(ring, s);
    int submitted = io_uring_submit_and_get_events(&ring->uring);
    if (submitted != (int)s->count)
        return submitted < 0 ? submitted : -EBUSY;
    acknowledge(s->receiver);
    if (s->kind != LOOP_SEND)
        io_uring_get_events(&ring->uring);
    collect(ring, s, &burst);
    int64_t nanoseconds = now() - start;

    ioctl(s->receiver, FIONREAD, &arrived);
    int error = drain(s->receiver, burst.sent);
    acknowledge(s->receiver);
    start = now();
    if (error == 0)
        error = wait_for_all(ring, s, &burst);
    nanoseconds += now() - start;

    if (error != 0 || burst.error != 0)
        return error != 0 ? error : burst.error;
    if (burst.sent != s->bytes * s->count)
        return -ENOBUFS;
    return (size_t)arrived == burst.sent ? nanoseconds : -EAGAIN;
}

int64_t loop_send(struct loop_ring *ring, struct loop_sends *sends, size_t repeats)
{
    int64_t nanoseconds = 0;

    /* TCP windows grow with use: a burst that they hold back is repeated. */
    for (int held_back = 0; repeats > 0;) {
        int64_t result = run_burst(ring, sends);
        if (result == -EAGAIN && ++held_back < HELD_BACK_MAX)
            continue;
        if (result < 0)
            return result == -EAGAIN ? -ENOBUFS : result;
        nanoseconds += result;
        held_back = 0;
        repeats--;
    }
    return nanoseconds;
}
