/* A loop of sends on io_uring without any protocol: the lower bound for the cost of fan-out. A connection names its role
 * by its first byte (the load generator's --protocol tcp), which is sent back. The bytes of a publisher are then sent to
 * all members, those of a chatter to all chatters, from the buffer in which they arrived: one send per member for all the
 * bytes of a receive. */
#include "bare.h"

enum { BUFFER_BYTES = 66 << 10 };

enum role { ROLE_UNKNOWN, ROLE_MEMBER, ROLE_CHATTER, ROLE_PUBLISHER };

/* The descriptors that receive the same messages. */
struct room {
    int members[DESCRIPTORS_MAX];
    unsigned count;
};

static struct room members, chatters;
static enum role roles[DESCRIPTORS_MAX];
static unsigned places[DESCRIPTORS_MAX]; /* of a descriptor in its room */
static unsigned sends_left[BUFFERS];     /* sends that still need the buffer */
static unsigned send_bytes[BUFFERS];

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

static void on_send(int fd, unsigned buffer, int result)
{
    const unsigned sent = result > 0 ? (unsigned)result : 0;
    if (sent < send_bytes[buffer] && (result > 0 || result == -EAGAIN))
        send_rest(fd, pool_memory(&pool, buffer) + sent, send_bytes[buffer] - sent);
    if (--sends_left[buffer] == 0)
        pool_return(&pool, buffer);
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
    open_server(argc, argv, 512, 1 << 15, BUFFER_BYTES);
    for (;;) {
        if (io_uring_sq_ready(&ring.uring) > 0)
            ring_submit(&ring);
        handle_completions();
        if (io_uring_sq_ready(&ring.uring) == 0)
            ring_turn(&ring, RING_NO_TIMEOUT);
    }
}
