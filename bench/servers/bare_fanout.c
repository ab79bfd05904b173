/* A loop of sends on io_uring without any protocol: the lower bound for the cost of fan-out. A connection names its role
 * by its first byte (the load generator's --protocol tcp), which is sent back. The bytes of a publisher are then sent to
 * all members, those of a chatter to all chatters, from the buffer in which they arrived: one send per member for all the
 * bytes of a receive. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/base.h"
#include "../load/ring.h"

enum { BUFFERS = 64, BUFFER_BYTES = 66 << 10, DESCRIPTORS_MAX = 1 << 16, SUBMISSIONS = 512 };

/* A completion is tagged with its kind, the descriptor, and for sends the buffer that is being sent. */
enum kind { KIND_ACCEPT, KIND_RECEIVE, KIND_SEND };

enum role { ROLE_UNKNOWN, ROLE_MEMBER, ROLE_CHATTER, ROLE_PUBLISHER };

/* The descriptors that receive the same messages. */
struct room {
    int members[DESCRIPTORS_MAX];
    unsigned count;
};

static struct ring ring;
static struct pool pool;
static struct room members, chatters;
static enum role roles[DESCRIPTORS_MAX];
static unsigned places[DESCRIPTORS_MAX]; /* of a descriptor in its room */
static unsigned sends_left[BUFFERS];     /* sends that still need the buffer */
static unsigned send_bytes[BUFFERS];

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

static struct room *room_of(int fd)
{
    return roles[fd] == ROLE_MEMBER ? &members : roles[fd] == ROLE_CHATTER ? &chatters : NULL;
}

static void join(int fd, uint8_t letter)
{
    roles[fd] = letter == 'm' ? ROLE_MEMBER : letter == 'c' ? ROLE_CHATTER : ROLE_PUBLISHER;
    struct room *room = room_of(fd);
    if (room != NULL) {
        places[fd] = room->count;
        room->members[room->count++] = fd;
    }
}

static void leave(int fd)
{
    struct room *room = room_of(fd);
    if (room != NULL) {
        int last = room->members[--room->count];
        room->members[places[fd]] = last;
        places[last] = places[fd];
    }
    roles[fd] = ROLE_UNKNOWN;
    close(fd);
}

static void send_to(int fd, unsigned buffer)
{
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    io_uring_prep_send(sqe, fd, pool_memory(&pool, buffer), send_bytes[buffer], MSG_DONTWAIT | MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, tag(KIND_SEND, fd, buffer));
    sends_left[buffer]++;
}

static void on_bytes(int fd, unsigned buffer, unsigned bytes)
{
    send_bytes[buffer] = bytes;
    if (roles[fd] == ROLE_UNKNOWN) {
        join(fd, *pool_memory(&pool, buffer));
        send_to(fd, buffer);
        return;
    }
    const struct room *room = roles[fd] == ROLE_PUBLISHER ? &members : &chatters;
    for (unsigned i = 0; i < room->count; i++)
        send_to(room->members[i], buffer);
    if (room->count == 0)
        pool_return(&pool, buffer);
}

static void on_receive(int fd, const struct io_uring_cqe *cqe)
{
    if (cqe->res > 0)
        on_bytes(fd, pool_buffer_of(cqe), (unsigned)cqe->res);
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    if (cqe->res > 0 || cqe->res == -ENOBUFS)
        arm_receive(fd);
    else
        leave(fd);
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
    if (--sends_left[buffer] == 0)
        pool_return(&pool, buffer);
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

static void handle_completions(void)
{
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&ring.uring, &cqe) == 0) {
        const struct io_uring_cqe copy = *cqe;
        io_uring_cqe_seen(&ring.uring, cqe); /* the sends below may fill the queue */
        const int fd = (int)(copy.user_data >> 8 & 0xffffffff);
        switch ((enum kind)(copy.user_data & 0xff)) {
        case KIND_ACCEPT: on_accept(fd, &copy); break;
        case KIND_RECEIVE: on_receive(fd, &copy); break;
        case KIND_SEND: on_send(fd, (unsigned)(copy.user_data >> 40), copy.res); break;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: bare_fanout HOST PORT");
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    ring_open(&ring, SUBMISSIONS, 1 << 15);
    pool_open(&pool, &ring, 0, POOL_READ, BUFFERS, BUFFER_BYTES);
    arm_accept(listen_on(argv[1], (unsigned)atoi(argv[2])));
    printf("listening %s\n", argv[2]);
    fflush(stdout);
    for (;;) {
        if (io_uring_sq_ready(&ring.uring) > 0)
            ring_submit(&ring);
        handle_completions();
        if (io_uring_sq_ready(&ring.uring) == 0)
            ring_turn(&ring, RING_NO_TIMEOUT);
    }
}
