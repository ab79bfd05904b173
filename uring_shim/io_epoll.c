/* The contract on epoll: level-triggered readiness, turned into completions. Sends happen at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"

enum { EVENTS_MAX = 16, ACCEPTS_PER_EVENT = 64, PENDING_MIN = 256 };

/* What epoll knows of a session's socket. */
struct watched {
    uint64_t data;                       /* urs_io_pack of its receive */
    int fd;
    uint32_t interest;                   /* EPOLLIN, EPOLLOUT; 0 and fd >= 0: registered, but silent */
    bool registered;
    bool once;
};

struct epoll {
    struct urs_io io;                    /* first: the contract's handle */
    int fd;
    struct urs_wake wake;
    struct watched *sessions;            /* by slot */
    uint32_t sessions_room;
    struct urs_completion *pending;      /* completions not yet collected: a ring would buy nothing here */
    uint32_t pending_first;
    uint32_t pending_count;
    uint32_t pending_room;
    uint16_t *free_buffers;              /* a stack: the buffer released last is the hottest */
    uint32_t free_count;
    struct epoll_event events[EVENTS_MAX];
};

static struct epoll *of(struct urs_io *io) { return (struct epoll *)io; }

static int push(struct epoll *epoll, struct urs_completion completion)
{
    if (epoll->pending_first + epoll->pending_count == epoll->pending_room) {
        if (epoll->pending_first > 0) {
            memmove(epoll->pending, epoll->pending + epoll->pending_first,
                    epoll->pending_count * sizeof *epoll->pending);
            epoll->pending_first = 0;
        } else {
            uint32_t room = epoll->pending_room == 0 ? PENDING_MIN : 2 * epoll->pending_room;
            struct urs_completion *pending = realloc(epoll->pending, room * sizeof *pending);
            if (pending == NULL)
                return -ENOMEM;
            epoll->pending = pending;
            epoll->pending_room = room;
        }
    }
    epoll->pending[epoll->pending_first + epoll->pending_count++] = completion;
    return 0;
}

static struct watched *watched_at(struct epoll *epoll, uint32_t slot)
{
    if (slot >= epoll->sessions_room) {
        uint32_t room = (uint32_t)urs_max(slot + 1, urs_max(64, 2 * (size_t)epoll->sessions_room));
        struct watched *sessions = realloc(epoll->sessions, room * sizeof *sessions);
        if (sessions == NULL)
            return NULL;
        memset(sessions + epoll->sessions_room, 0, (room - epoll->sessions_room) * sizeof *sessions);
        epoll->sessions = sessions;
        epoll->sessions_room = room;
    }
    return &epoll->sessions[slot];
}

/* Registers, or changes, what a session's socket is watched for. */
static int watch(struct epoll *epoll, struct watched *watched, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.u64 = watched->data};
    int operation = watched->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (watched->registered && watched->interest == interest)
        return 0;
    /* Without any interest epoll would still report EPOLLHUP, turn after turn. */
    if (interest == 0)
        operation = EPOLL_CTL_DEL;
    if (urs_fault_errno(operation == EPOLL_CTL_DEL ? 0 : urs_fault(URS_FAULT_ARM))
        || epoll_ctl(epoll->fd, operation, watched->fd, &event) != 0)
        return -errno;
    watched->interest = interest;
    watched->registered = interest != 0;
    return 0;
}

static void epoll_close(struct urs_io *io)
{
    struct epoll *epoll = of(io);
    urs_wake_close(&epoll->wake);
    close(epoll->fd);
    free(epoll->sessions);
    free(epoll->pending);
    free(epoll->free_buffers);
    free(epoll);
}

static int epoll_open(struct urs_io **io, struct urs_pool *pool, uint32_t ring_entries, bool zero_copy,
                      struct urs_io_report *report)
{
    (void)ring_entries;
    (void)zero_copy;
    *report = (struct urs_io_report){0};
    struct epoll *epoll = calloc(1, sizeof *epoll);
    if (epoll == NULL)
        return report->error = -ENOMEM;
    epoll->io.operations = &urs_io_epoll;
    epoll->io.pool = pool;
    epoll->free_buffers = malloc(pool->buffers * sizeof *epoll->free_buffers);
    int error = epoll->free_buffers == NULL ? -ENOMEM : 0;
    while (error == 0 && epoll->free_count < pool->buffers) {
        epoll->free_buffers[epoll->free_count] = (uint16_t)(pool->buffers - 1 - epoll->free_count);
        epoll->free_count++;
    }
    report->stage = "epoll_create1";
    epoll->fd = error == 0 ? epoll_create1(EPOLL_CLOEXEC) : -1;
    if (error == 0 && epoll->fd < 0)
        error = -errno;
    if (error == 0) {
        report->stage = "pipe2";
        error = urs_wake_open(&epoll->wake);
    }
    if (error != 0) {
        if (epoll->fd >= 0)
            close(epoll->fd);
        free(epoll->free_buffers);
        free(epoll);
        return report->error = error;
    }
    report->stage = NULL;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = urs_io_pack(URS_IO_WAKE, 0, 0)};
    if (epoll_ctl(epoll->fd, EPOLL_CTL_ADD, epoll->wake.read_fd, &event) != 0) {
        report->stage = "epoll_ctl";
        report->error = -errno;
        epoll_close(&epoll->io);
        return report->error;
    }
    *io = &epoll->io;
    return 0;
}

static int epoll_start(struct urs_io *io)
{
    (void)io;
    return 0;
}

static int epoll_accept(struct urs_io *io, uint32_t slot, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = urs_io_pack(URS_IO_ACCEPT, (uint32_t)fd, slot)};
    int error = urs_io_set_blocking(fd, false);  /* a connection may be gone again by the time we accept it */
    if (error != 0)
        return error;
    if (urs_fault_errno(urs_fault(URS_FAULT_ARM)) || epoll_ctl(of(io)->fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return -errno;
    return 0;
}

static int end_accept(struct epoll *epoll, uint32_t slot, int fd, int result)
{
    epoll_ctl(epoll->fd, EPOLL_CTL_DEL, fd, NULL);
    return push(epoll, (struct urs_completion){
        .kind = URS_IO_ACCEPT, .slot = slot, .result = result, .buffer = URS_IO_NO_BUFFER});
}

static int epoll_accept_stop(struct urs_io *io, uint32_t slot, int fd)
{
    return end_accept(of(io), slot, fd, -ECANCELED);
}

static int epoll_receive(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once)
{
    struct watched *watched = watched_at(of(io), slot);
    if (watched == NULL)
        return -ENOMEM;
    watched->data = urs_io_pack(URS_IO_RECEIVE, generation, slot);
    watched->fd = fd;
    watched->once = once;
    return watch(of(io), watched, watched->interest | EPOLLIN);
}

static int end_receive(struct epoll *epoll, struct watched *watched, int32_t result, uint16_t buffer)
{
    struct urs_completion completion = {.result = result, .buffer = buffer};
    urs_io_unpack(watched->data, &completion);
    watch(epoll, watched, watched->interest & ~(uint32_t)EPOLLIN);
    return push(epoll, completion);
}

static int epoll_receive_stop(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    (void)generation;
    (void)fd;
    return end_receive(of(io), &of(io)->sessions[slot], -ECANCELED, URS_IO_NO_BUFFER);
}

static int epoll_send(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, const struct iovec *vectors,
                      uint32_t count)
{
    ssize_t sent;
    if (count == 1) {
        sent = urs_sys_send(fd, vectors->iov_base, vectors->iov_len);
    } else {
        struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)vectors, .msg_iovlen = count};
        sent = urs_sys_sendmsg(fd, &message);
    }
    return push(of(io), (struct urs_completion){
        .kind = URS_IO_SEND, .slot = slot, .generation = generation & 0xffffff, .buffer = URS_IO_NO_BUFFER,
        .result = sent < 0 ? -errno : (int32_t)sent});
}

static int epoll_writable(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    struct watched *watched = watched_at(of(io), slot);
    if (watched == NULL)
        return -ENOMEM;
    watched->data = urs_io_pack(URS_IO_RECEIVE, generation, slot);
    watched->fd = fd;
    return watch(of(io), watched, watched->interest | EPOLLOUT);
}

static void epoll_forget(struct urs_io *io, uint32_t slot, int fd)
{
    (void)fd;
    if (slot < of(io)->sessions_room) {
        struct watched *watched = &of(io)->sessions[slot];
        if (watched->registered)
            watch(of(io), watched, 0);
        *watched = (struct watched){0};
    }
}

static int epoll_submit(struct urs_io *io)
{
    (void)io;
    return 0;
}

static uint32_t epoll_collect(struct urs_io *io, struct urs_completion *out, uint32_t room)
{
    struct epoll *epoll = of(io);
    uint32_t count = (uint32_t)urs_min(room, epoll->pending_count);
    if (count == 0)
        return 0;
    memcpy(out, epoll->pending + epoll->pending_first, count * sizeof *out);
    epoll->pending_first += count;
    epoll->pending_count -= count;
    if (epoll->pending_count == 0)
        epoll->pending_first = 0;
    return count;
}

static int ready_accept(struct epoll *epoll, uint32_t slot, int fd)
{
    for (int tries = 0; tries < ACCEPTS_PER_EVENT; tries++) {
        int accepted = urs_sys_accept(fd);
        if (accepted < 0 && errno == EAGAIN)
            return 0;
        if (accepted < 0 && urs_io_accept_fate(-errno) != URS_FATE_AGAIN)
            return end_accept(epoll, slot, fd, -errno);
        int error = push(epoll, (struct urs_completion){
            .kind = URS_IO_ACCEPT, .slot = slot, .result = accepted < 0 ? -errno : accepted, .more = true,
            .buffer = URS_IO_NO_BUFFER});
        if (error != 0)
            return error;
    }
    return 0;
}

static int ready_receive(struct epoll *epoll, struct watched *watched)
{
    /* Without a free buffer the socket simply stays readable. */
    if (epoll->free_count == 0)
        return 0;
    uint16_t buffer = epoll->free_buffers[epoll->free_count - 1];
    ssize_t got = urs_sys_recv(watched->fd, urs_pool_buffer(epoll->io.pool, buffer), epoll->io.pool->buffer_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return end_receive(epoll, watched, got < 0 ? -errno : 0, URS_IO_NO_BUFFER);
    epoll->free_count--;
    urs_pool_taken(epoll->io.pool);
    if (watched->once)
        return end_receive(epoll, watched, (int32_t)got, buffer);
    struct urs_completion completion = {.result = (int32_t)got, .buffer = buffer, .more = true};
    urs_io_unpack(watched->data, &completion);
    return push(epoll, completion);
}

static int ready_session(struct epoll *epoll, const struct epoll_event *event)
{
    struct urs_completion completion = {.buffer = URS_IO_NO_BUFFER};
    urs_io_unpack(event->data.u64, &completion);
    struct watched *watched = &epoll->sessions[completion.slot];
    int error = 0;
    if (watched->data != event->data.u64)
        return 0;
    if ((watched->interest & EPOLLOUT) != 0 && (event->events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0) {
        watch(epoll, watched, watched->interest & ~(uint32_t)EPOLLOUT);
        completion.kind = URS_IO_WRITABLE;
        error = push(epoll, completion);
    }
    if (error == 0 && (watched->interest & EPOLLIN) != 0 && (event->events & ~(uint32_t)EPOLLOUT) != 0)
        error = ready_receive(epoll, watched);
    return error;
}

static int ready_wake(struct epoll *epoll)
{
    char bytes[64];
    if (read(epoll->wake.read_fd, bytes, sizeof bytes) < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : -errno;
    urs_wake_clear(&epoll->wake);
    return push(epoll, (struct urs_completion){.kind = URS_IO_WAKE, .more = true, .buffer = URS_IO_NO_BUFFER});
}

static int epoll_wait_ready(struct urs_io *io, int64_t timeout_ns)
{
    struct epoll *epoll = of(io);
    if (epoll->pending_count > 0)
        return 0;
    int timeout_ms = timeout_ns < 0 ? -1 : (int)urs_min((size_t)(timeout_ns + 999999) / 1000000, 1u << 30);
    io->stats.enters++;
    if (urs_fault_errno(urs_fault(URS_FAULT_ENTER)))
        return -errno;
    int count = epoll_wait(epoll->fd, epoll->events, EVENTS_MAX, timeout_ms);
    if (count < 0)
        return -errno;
    int error = 0;
    for (int index = 0; index < count && error == 0; index++) {
        struct urs_completion identity = {0};
        urs_io_unpack(epoll->events[index].data.u64, &identity);
        if (identity.kind == URS_IO_WAKE)
            error = ready_wake(epoll);
        else if (identity.kind == URS_IO_ACCEPT)
            error = ready_accept(epoll, identity.slot, (int)identity.generation);
        else
            error = ready_session(epoll, &epoll->events[index]);
    }
    return error;
}

static void epoll_release(struct urs_io *io, uint16_t buffer)
{
    of(io)->free_buffers[of(io)->free_count++] = buffer;
    io->pool->in_use--;
}

static void epoll_wake(struct urs_io *io) { urs_wake_write(&of(io)->wake); }

static int epoll_wake_descriptor(const struct urs_io *io) { return ((const struct epoll *)io)->wake.write_fd; }

const struct urs_io_operations urs_io_epoll = {
    .name = "epoll",
    .open = epoll_open,
    .start = epoll_start,
    .close = epoll_close,
    .accept = epoll_accept,
    .accept_stop = epoll_accept_stop,
    .receive = epoll_receive,
    .receive_stop = epoll_receive_stop,
    .send = epoll_send,
    .writable = epoll_writable,
    .forget = epoll_forget,
    .submit = epoll_submit,
    .collect = epoll_collect,
    .wait = epoll_wait_ready,
    .release = epoll_release,
    .wake = epoll_wake,
    .wake_descriptor = epoll_wake_descriptor,
};
