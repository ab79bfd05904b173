/* A TCP echo on io_uring without any protocol: the lower bound for the cost of uringws' run_echo. It receives, sends
 * and reuses its buffers in the same way (multishot receives into a small hot pool, MSG_DONTWAIT sends in place, reap,
 * recycle, wait). So the additional cost of run_echo is the price of WebSocket. */
#include "bare.h"

#include <stdbool.h>

enum { BUFFER_BYTES = 17 << 10 };

/* The bytes that a receive left in a buffer and that cannot be sent yet, because a send of the same connection is
 * queued. */
struct delayed {
    int fd;
    unsigned buffer;
    unsigned bytes;
};

/* A descriptor is closed only when its receive has ended and its sends have completed, so a tag is never stale. */
static bool sending[DESCRIPTORS_MAX]; /* a send is queued or in flight */
static bool ended[DESCRIPTORS_MAX];   /* the receive has ended; close when everything is sent */
static unsigned send_bytes[BUFFERS];
static struct delayed delayed[BUFFERS];
static unsigned delayed_count;

static void send_in_place(int fd, unsigned buffer, unsigned bytes)
{
    sending[fd] = true;
    send_bytes[buffer] = bytes;
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    io_uring_prep_send(sqe, fd, pool_memory(&pool, buffer), bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, tag(KIND_SEND, fd, buffer));
}

static bool is_delayed(int fd)
{
    for (unsigned i = 0; i < delayed_count; i++)
        if (delayed[i].fd == fd)
            return true;
    return false;
}

static void close_when_sent(int fd)
{
    ended[fd] = sending[fd] || is_delayed(fd);
    if (!ended[fd])
        close(fd);
}

static void on_receive(int fd, const struct io_uring_cqe *cqe)
{
    if (cqe->res > 0) {
        const unsigned buffer = pool_buffer_of(cqe);
        if (sending[fd] || is_delayed(fd))
            delayed[delayed_count++] = (struct delayed){fd, buffer, (unsigned)cqe->res};
        else
            send_in_place(fd, buffer, (unsigned)cqe->res);
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    if (cqe->res > 0 || cqe->res == -ENOBUFS)
        arm_receive(fd);
    else
        close_when_sent(fd);
}

static void on_send(int fd, unsigned buffer, int result)
{
    const unsigned sent = result > 0 ? (unsigned)result : 0;
    if (sent < send_bytes[buffer] && (result > 0 || result == -EAGAIN))
        send_rest(fd, pool_memory(&pool, buffer) + sent, send_bytes[buffer] - sent);
    sending[fd] = false;
    pool_return(&pool, buffer);
    if (ended[fd])
        close_when_sent(fd);
}

static void send_delayed(void)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < delayed_count; i++) {
        if (sending[delayed[i].fd])
            delayed[kept++] = delayed[i];
        else
            send_in_place(delayed[i].fd, delayed[i].buffer, delayed[i].bytes);
    }
    delayed_count = kept;
}

/* Returns whether anything was queued. */
static bool handle_completions(void)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&ring.uring, head, cqe) {
        const uint64_t data = io_uring_cqe_get_data64(cqe);
        const int fd = (int)(data >> 8 & 0xffffffff);
        switch ((enum kind)(data & 0xff)) {
        case KIND_ACCEPT: on_accept(fd, cqe); break;
        case KIND_RECEIVE: on_receive(fd, cqe); break;
        case KIND_SEND: on_send(fd, (unsigned)(data >> 40), cqe->res); break;
        }
        count++;
    }
    io_uring_cq_advance(&ring.uring, count);
    send_delayed();
    return io_uring_sq_ready(&ring.uring) > 0;
}

int main(int argc, char **argv)
{
    open_server(argc, argv, 256, 2048, BUFFER_BYTES);
    for (;;) {
        /* In-place sends complete while they are submitted. A first turn that does not wait frees their buffers before
         * the next receive needs one, so the hottest buffer is always filled next. */
        if (io_uring_sq_ready(&ring.uring) > 0)
            ring_submit(&ring);
        if (!handle_completions())
            ring_turn(&ring, RING_NO_TIMEOUT);
    }
}
