/* A TCP echo on io_uring without any protocol: the lower bound for the cost of uringws' run_echo. It receives, sends
 * and reuses its buffers in the same way (multishot receives into a small hot pool, MSG_DONTWAIT sends in place, reap,
 * recycle, wait). So the additional cost of run_echo is the price of WebSocket. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/base.h"
#include "../load/ring.h"

enum { BUFFERS = 64, BUFFER_BYTES = 17 << 10, DESCRIPTORS_MAX = 1 << 16 };

/* A completion is tagged with its kind, the descriptor, and for sends the buffer that is being sent. A descriptor is
 * closed only when its receive has ended and its sends have completed, so a tag is never stale. */
enum kind { KIND_ACCEPT, KIND_RECEIVE, KIND_SEND };

/* The bytes that a receive left in a buffer and that cannot be sent yet, because a send of the same connection is
 * queued. */
struct delayed {
    int fd;
    unsigned buffer;
    unsigned bytes;
};

static struct ring ring;
static struct pool pool;
static bool sending[DESCRIPTORS_MAX]; /* a send is queued or in flight */
static bool ended[DESCRIPTORS_MAX];   /* the receive has ended; close when everything is sent */
static unsigned send_bytes[BUFFERS];
static struct delayed delayed[BUFFERS];
static unsigned delayed_count;

static uint64_t tag(enum kind kind, int fd, unsigned buffer)
{
    return (uint64_t)buffer << 40 | (uint64_t)(unsigned)fd << 8 | kind;
}

static int listen_on(const char *host, unsigned port)
{
    const int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("the host must be an IPv4 address, not \"%s\"", host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* accepted sockets inherit it */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        fail("cannot listen on %s:%u: %s", host, port, strerror(errno));
    return fd;
}

static void arm_accept(int listener)
{
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, tag(KIND_ACCEPT, listener, 0));
}

static void arm_receive(int fd)
{
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    pool_receive(&pool, sqe, fd);
    io_uring_sqe_set_data64(sqe, tag(KIND_RECEIVE, fd, 0));
}

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

/* A full socket buffer does not occur in the loads that this server is for, so sending the rest may block. */
static void send_rest(int fd, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        bytes += sent;
        count -= (size_t)sent;
    }
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

static void on_accept(int listener, const struct io_uring_cqe *cqe)
{
    if (cqe->res >= DESCRIPTORS_MAX)
        fail("more than %d descriptors", DESCRIPTORS_MAX);
    if (cqe->res >= 0)
        arm_receive(cqe->res);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        arm_accept(listener);
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
    if (argc != 3)
        fail("usage: bare_uring HOST PORT");
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    ring_open(&ring, 256, 2048);
    pool_open(&pool, &ring, 0, POOL_READ, BUFFERS, BUFFER_BYTES);
    arm_accept(listen_on(argv[1], (unsigned)atoi(argv[2])));
    printf("listening %s\n", argv[2]);
    fflush(stdout);
    for (;;) {
        /* In-place sends complete while they are submitted. A first turn that does not wait frees their buffers before
         * the next receive needs one, so the hottest buffer is always filled next. */
        if (io_uring_sq_ready(&ring.uring) > 0)
            ring_submit(&ring);
        if (!handle_completions())
            ring_turn(&ring, RING_NO_TIMEOUT);
    }
}
