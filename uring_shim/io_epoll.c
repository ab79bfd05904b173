/* The backend on epoll: level-triggered readiness, turned into completions. Sends run at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"

/* Few events per wait keep receive buffers in the CPU cache. If many sockets are readable and some hold much, a wait
 * takes more events, to find the sockets that hold little. */
enum { EVENTS_FEW = 16, EVENTS_MAX = 512, CROWDED_WAITS = 64, ACCEPTS_PER_EVENT = 16 };

/* SENT_MAX: completions of sends between two collects. PENDING_MIN: initial room for other completions (small in builds
 * where tests make its growth fail). */
#ifdef URS_FAULTS
enum { SENT_MAX = 1024, PENDING_MIN = 16 };
#else
enum { SENT_MAX = 1024, PENDING_MIN = 256 };
#endif

/* How epoll watches a session's socket. */
struct watched {
    uint64_t data;                       /* urs_io_pack of its receive */
    int fd;
    uint32_t interest;                   /* EPOLLIN, EPOLLOUT; 0: the socket is not registered */
    bool registered;
    bool once;
    bool heavy;                          /* the last receive filled the buffer: the socket holds more */
    uint32_t served;                     /* the last crowded wait in which the socket had a receive */
};

struct epoll {
    struct urs_io io;                    /* first, so that a pointer to it is a pointer to the struct */
    int fd;
    struct urs_wake wake;
    struct watched *sessions;            /* by slot */
    uint32_t sessions_room;
    struct urs_completion *sent;         /* SENT_MAX entries for completions of sends, which never need more */
    uint32_t sent_first;
    uint32_t sent_count;
    struct urs_completion *pending;      /* other completions not collected yet; an array, because a ring would gain
                                            nothing here */
    uint32_t pending_first;
    uint32_t pending_count;
    uint32_t pending_room;
    uint16_t *free_buffers;              /* a stack: the buffer released last is the hottest in the cache */
    uint32_t free_count;
    uint32_t crowded_waits;              /* how many more waits look at EVENTS_MAX events */
    uint32_t waits;                      /* the number of crowded waits since open */
    uint32_t round_began[2];             /* by `heavy`: the wait in which the present round began; in a round each
                                            session has one receive */
    struct epoll_event events[EVENTS_MAX];
};

static struct epoll *of(struct urs_io *io) { return (struct epoll *)io; }

/* Ensures room for one more completion. Returns -ENOMEM if there is none: the event must then wait, or its completion
 * would be lost. Epoll reports an event again if it was not handled. */
static int reserve(struct epoll *epoll)
{
    URS_ASSERT(epoll->pending_first + epoll->pending_count <= epoll->pending_room);
    if (epoll->pending_first + epoll->pending_count < epoll->pending_room)
        return 0;
    if (epoll->pending_first > 0) {
        memmove(epoll->pending, epoll->pending + epoll->pending_first, epoll->pending_count * sizeof *epoll->pending);
        epoll->pending_first = 0;
        return 0;
    }
    if (urs_fault(URS_FAULT_GROW) != 0)
        return -ENOMEM;
    struct urs_completion *pending = realloc(epoll->pending, 2 * (size_t)epoll->pending_room * sizeof *pending);
    if (pending == NULL)
        return -ENOMEM;
    epoll->pending = pending;
    epoll->pending_room *= 2;
    return 0;
}

/* Adds a completion. The caller must have ensured room. */
static void push(struct epoll *epoll, struct urs_completion completion)
{
    URS_ASSERT(epoll->pending_first + epoll->pending_count < epoll->pending_room);
    epoll->pending[epoll->pending_first + epoll->pending_count++] = completion;
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

/* Registers the socket of a session for `interest`, or changes its interest. */
static int watch(struct epoll *epoll, struct watched *watched, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.u64 = watched->data};
    int operation = watched->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    URS_ASSERT(watched->fd >= 0 && (interest & ~(uint32_t)(EPOLLIN | EPOLLOUT)) == 0);
    URS_ASSERT(watched->registered == (watched->interest != 0));
    if (watched->registered && watched->interest == interest)
        return 0;
    /* A registered socket without any interest would still report EPOLLHUP in every turn. */
    if (interest == 0)
        operation = EPOLL_CTL_DEL;
    bool adds = (interest & ~watched->interest) != 0;  /* only this takes memory, so only this may fail */
    if (urs_fault_errno(adds ? urs_fault(URS_FAULT_ARM) : 0)
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
    free(epoll->sent);
    free(epoll->free_buffers);
    free(epoll);
}

/* Allocates the lists. On failure the caller frees those that were allocated. */
static int make_lists(struct epoll *epoll)
{
    uint32_t buffers = epoll->io.pool->buffers;
    epoll->free_buffers = malloc(buffers * sizeof *epoll->free_buffers);
    epoll->sent = malloc(SENT_MAX * sizeof *epoll->sent);
    epoll->pending = malloc(PENDING_MIN * sizeof *epoll->pending);
    epoll->pending_room = PENDING_MIN;
    if (epoll->free_buffers == NULL || epoll->sent == NULL || epoll->pending == NULL)
        return -ENOMEM;
    while (epoll->free_count < buffers) {
        epoll->free_buffers[epoll->free_count] = (uint16_t)(buffers - 1 - epoll->free_count);
        epoll->free_count++;
    }
    return 0;
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
    int error = make_lists(epoll);
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
        free(epoll->sent);
        free(epoll->pending);
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
    URS_ASSERT(fd >= 0 && fd <= 0xffffff);  /* the descriptor takes the place of the generation */
    int error = urs_io_set_nonblocking(fd);  /* another process may accept the connection first */
    if (error != 0)
        return error;
    if (urs_fault_errno(urs_fault(URS_FAULT_ARM)) || epoll_ctl(of(io)->fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return -errno;
    return 0;
}

/* The caller must have ensured room for the completion. */
static void end_accept(struct epoll *epoll, uint32_t slot, int fd, int result)
{
    epoll_ctl(epoll->fd, EPOLL_CTL_DEL, fd, NULL);
    push(epoll, (struct urs_completion){
        .kind = URS_IO_ACCEPT, .slot = slot, .result = result, .buffer = URS_IO_NO_BUFFER});
}

static int epoll_accept_stop(struct urs_io *io, uint32_t slot, int fd)
{
    int error = reserve(of(io));
    if (error == 0)
        end_accept(of(io), slot, fd, -ECANCELED);
    return error;
}

static int epoll_receive(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once)
{
    struct watched *watched = watched_at(of(io), slot);
    if (watched == NULL)
        return -ENOMEM;
    if (watched->data == 0)
        watched->served = of(io)->waits;  /* waits for the next round, or a round might never end */
    watched->data = urs_io_pack(URS_IO_RECEIVE, generation, slot);
    watched->fd = fd;
    watched->once = once;
    return watch(of(io), watched, watched->interest | EPOLLIN);
}

/* The caller must have ensured room for the completion. */
static void end_receive(struct epoll *epoll, struct watched *watched, int32_t result, uint16_t buffer)
{
    URS_ASSERT((watched->interest & EPOLLIN) != 0);
    struct urs_completion completion = {.result = result, .buffer = buffer};
    urs_io_unpack(watched->data, &completion);
    (void)watch(epoll, watched, watched->interest & ~(uint32_t)EPOLLIN);
    push(epoll, completion);
}

static int epoll_receive_stop(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    (void)generation;
    (void)fd;
    struct watched *watched = &of(io)->sessions[slot];
    if ((watched->interest & EPOLLIN) == 0)
        return 0;  /* it has ended already: a second last completion would count for the next receive */
    int error = reserve(of(io));
    if (error == 0)
        end_receive(of(io), watched, -ECANCELED, URS_IO_NO_BUFFER);
    return error;
}

static int epoll_send(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, const struct iovec *vectors,
                      uint32_t count)
{
    struct epoll *epoll = of(io);
    ssize_t sent;
    URS_ASSERT(fd >= 0 && count >= 1 && count <= URS_IO_VECTORS_MAX);
    if (epoll->sent_first + epoll->sent_count == SENT_MAX)
        return -EBUSY;
    if (count == 1) {
        sent = urs_sys_send(fd, vectors->iov_base, vectors->iov_len);
    } else {
        struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)vectors, .msg_iovlen = count};
        sent = urs_sys_sendmsg(fd, &message);
    }
    epoll->sent[epoll->sent_first + epoll->sent_count++] = (struct urs_completion){
        .kind = URS_IO_SEND, .slot = slot, .generation = generation & 0xffffff, .buffer = URS_IO_NO_BUFFER,
        .result = sent < 0 ? -errno : (int32_t)sent};
    return 0;
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

static int epoll_watch(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool writable)
{
    struct epoll_event event = {
        .events = writable ? EPOLLOUT : EPOLLIN, .data.u64 = urs_io_pack(URS_IO_WATCH, generation, slot)};
    if (urs_fault_errno(urs_fault(URS_FAULT_ARM)) || epoll_ctl(of(io)->fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return -errno;
    return 0;
}

static int epoll_unwatch(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    int error = reserve(of(io));
    if (error != 0)
        return error;
    epoll_ctl(of(io)->fd, EPOLL_CTL_DEL, fd, NULL);
    push(of(io), (struct urs_completion){
        .kind = URS_IO_WATCH, .slot = slot, .generation = generation & 0xffffff, .result = -ECANCELED,
        .buffer = URS_IO_NO_BUFFER});
    return 0;
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

/* Moves completions from the front of a list to `out`; returns how many. */
static uint32_t take(struct urs_completion *out, uint32_t room, const struct urs_completion *list, uint32_t *first,
                     uint32_t *count)
{
    URS_ASSERT(*count > 0 || *first == 0);
    uint32_t taken = (uint32_t)urs_min(room, *count);
    if (taken > 0)
        memcpy(out, list + *first, taken * sizeof *out);
    *count -= taken;
    *first = *count == 0 ? 0 : *first + taken;
    return taken;
}

static uint32_t epoll_collect(struct urs_io *io, struct urs_completion *out, uint32_t room)
{
    struct epoll *epoll = of(io);
    uint32_t count = take(out, room, epoll->sent, &epoll->sent_first, &epoll->sent_count);
    return count + take(out + count, room - count, epoll->pending, &epoll->pending_first, &epoll->pending_count);
}

static int ready_accept(struct epoll *epoll, uint32_t slot, int fd)
{
    for (int tries = 0; tries < ACCEPTS_PER_EVENT && reserve(epoll) == 0; tries++) {
        int accepted = urs_sys_accept(fd);
        if (accepted < 0 && errno == EAGAIN)
            return 0;
        if (accepted < 0 && urs_io_accept_fate(-errno) != URS_FATE_AGAIN) {
            end_accept(epoll, slot, fd, -errno);
            return 0;
        }
        push(epoll, (struct urs_completion){
            .kind = URS_IO_ACCEPT, .slot = slot, .result = accepted < 0 ? -errno : accepted, .more = true,
            .buffer = URS_IO_NO_BUFFER});
    }
    return 0;
}

static int ready_receive(struct epoll *epoll, struct watched *watched)
{
    /* Without a free buffer, or without room for the completion, the socket simply stays readable. */
    if (epoll->free_count == 0 || reserve(epoll) != 0)
        return 0;
    uint16_t buffer = epoll->free_buffers[epoll->free_count - 1];
    URS_ASSERT(buffer < epoll->io.pool->buffers);
    URS_ASSERT(epoll->free_count + epoll->io.pool->in_use == epoll->io.pool->buffers);
    ssize_t got = urs_sys_recv(watched->fd, urs_pool_buffer(epoll->io.pool, buffer), epoll->io.pool->buffer_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0) {
        end_receive(epoll, watched, got < 0 ? -errno : 0, URS_IO_NO_BUFFER);
        return 0;
    }
    epoll->free_count--;
    urs_pool_taken(epoll->io.pool);
    watched->heavy = (size_t)got == epoll->io.pool->buffer_bytes;
    if (watched->once) {
        end_receive(epoll, watched, (int32_t)got, buffer);
        return 0;
    }
    struct urs_completion completion = {.result = (int32_t)got, .buffer = buffer, .more = true};
    urs_io_unpack(watched->data, &completion);
    push(epoll, completion);
    return 0;
}

static bool is_readable(const struct watched *watched, const struct epoll_event *event)
{
    return watched->data == event->data.u64 && (watched->interest & EPOLLIN) != 0
        && (event->events & ~(uint32_t)EPOLLOUT) != 0;
}

static int ready_session(struct epoll *epoll, const struct epoll_event *event, bool receive)
{
    struct urs_completion completion = {.buffer = URS_IO_NO_BUFFER};
    urs_io_unpack(event->data.u64, &completion);
    struct watched *watched = &epoll->sessions[completion.slot];
    int error = 0;
    if (watched->data != event->data.u64)
        return 0;
    if ((watched->interest & EPOLLOUT) != 0 && (event->events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0
        && reserve(epoll) == 0) {
        (void)watch(epoll, watched, watched->interest & ~(uint32_t)EPOLLOUT);
        completion.kind = URS_IO_WRITABLE;
        push(epoll, completion);
    }
    if (error == 0 && receive && is_readable(watched, event))
        error = ready_receive(epoll, watched);
    return error;
}

static int ready_wake(struct epoll *epoll)
{
    char bytes[64];
    if (reserve(epoll) != 0)
        return 0;
    if (read(epoll->wake.read_fd, bytes, sizeof bytes) < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : -errno;
    urs_wake_clear(&epoll->wake);
    push(epoll, (struct urs_completion){.kind = URS_IO_WAKE, .more = true, .buffer = URS_IO_NO_BUFFER});
    return 0;
}

static int ready_watch(struct epoll *epoll, const struct epoll_event *event)
{
    struct urs_completion completion = {
        .result = urs_fault(URS_FAULT_WATCH), .more = true, .buffer = URS_IO_NO_BUFFER};
    if (reserve(epoll) != 0)
        return 0;
    urs_io_unpack(event->data.u64, &completion);
    push(epoll, completion);
    return 0;
}

static int ready_event(struct epoll *epoll, const struct epoll_event *event, bool receive)
{
    struct urs_completion identity = {0};
    urs_io_unpack(event->data.u64, &identity);
    if (identity.kind == URS_IO_WAKE)
        return ready_wake(epoll);
    if (identity.kind == URS_IO_ACCEPT)
        return ready_accept(epoll, identity.slot, (int)identity.generation);
    if (identity.kind == URS_IO_WATCH)
        return ready_watch(epoll, event);
    return ready_session(epoll, event, receive);
}

/* Returns the session that an event makes readable; NULL if there is none. */
static struct watched *readable_session(struct epoll *epoll, const struct epoll_event *event)
{
    struct urs_completion identity = {0};
    urs_io_unpack(event->data.u64, &identity);
    if (identity.kind != URS_IO_RECEIVE)
        return NULL;
    struct watched *watched = &epoll->sessions[identity.slot];
    return is_readable(watched, event) ? watched : NULL;
}

/* Receives once from at most `room` of the heavy sessions, or of the other ones: first from those that had no receive
 * in this round, then in a new round from the rest. Returns 0 or -ENOMEM. */
static int serve(struct epoll *epoll, int count, bool heavy, uint32_t room)
{
    bool new_round = false;
    for (;;) {
        for (int index = 0; index < count && room > 0; index++) {
            struct watched *watched = readable_session(epoll, &epoll->events[index]);
            if (watched == NULL || watched->heavy != heavy || watched->served == epoll->waits)
                continue;
            if (!new_round && (int32_t)(watched->served - epoll->round_began[heavy]) >= 0)
                continue;
            watched->served = epoll->waits;
            room--;
            int error = ready_receive(epoll, watched);
            if (error != 0)
                return error;
        }
        if (room == 0 || new_round)
            return 0;
        new_round = true;
        epoll->round_began[heavy] = epoll->waits;
    }
}

/* Handles many readable sockets. The sockets that hold little come first and leave some buffers to a few of the
 * others. */
static int ready_crowd(struct epoll *epoll, int count)
{
    uint32_t kept = (uint32_t)urs_min(epoll->free_count / 2, EVENTS_FEW / 2);
    int error = 0;
    epoll->waits++;
    for (int index = 0; index < count && error == 0; index++)
        error = ready_event(epoll, &epoll->events[index], false);
    if (error == 0)
        error = serve(epoll, count, false, epoll->free_count - kept);
    if (error == 0)
        error = serve(epoll, count, true, (uint32_t)urs_min(epoll->free_count, EVENTS_FEW));
    return error;
}

static int epoll_wait_ready(struct urs_io *io, int64_t timeout_ns)
{
    struct epoll *epoll = of(io);
    if (epoll->sent_count > 0 || epoll->pending_count > 0)
        return 0;
    int timeout_ms = timeout_ns < 0 ? -1 : (int)urs_min((size_t)(timeout_ns + 999999) / 1000000, 1u << 30);
    io->stats.enters++;
    if (urs_fault_errno(urs_fault(URS_FAULT_ENTER)))
        return -errno;
    bool crowded = epoll->crowded_waits > 0;
    int few = (int)urs_min(EVENTS_FEW, epoll->io.pool->buffers);  /* at most one event per buffer */
    int count = epoll_wait(epoll->fd, epoll->events, crowded ? EVENTS_MAX : few, timeout_ms);
    if (count < 0)
        return -errno;
    if (crowded) {
        epoll->crowded_waits = count > few ? CROWDED_WAITS : epoll->crowded_waits - 1;
        return ready_crowd(epoll, count);
    }
    int error = 0;
    for (int index = 0; index < count && error == 0; index++)
        error = ready_event(epoll, &epoll->events[index], true);
    for (int index = 0; index < count && count == few; index++) {
        const struct watched *watched = readable_session(epoll, &epoll->events[index]);
        if (watched != NULL && watched->heavy)
            epoll->crowded_waits = CROWDED_WAITS;
    }
    return error;
}

/* Sleeps for the time in which receives may gather, unless `count` sockets are ready already: epoll_wait ends with the
 * first. */
static int epoll_wait_for(struct urs_io *io, int64_t timeout_ns, uint32_t count, uint32_t more_us)
{
    struct epoll *epoll = of(io);
    int64_t more_ns = (int64_t)more_us * 1000;
    if (timeout_ns >= 0 && timeout_ns < more_ns)
        more_ns = timeout_ns;
    if (more_ns == 0 || epoll->sent_count > 0 || epoll->pending_count > 0)
        return epoll_wait_ready(io, timeout_ns);
    int most = (int)urs_min(count, EVENTS_MAX);
    io->stats.enters++;
    /* The sockets stay ready: nothing is taken here. */
    if (epoll_wait(epoll->fd, epoll->events, most, 0) == most)
        return epoll_wait_ready(io, 0);
    struct timespec pause = {.tv_sec = more_ns / 1000000000, .tv_nsec = more_ns % 1000000000};
    if (nanosleep(&pause, NULL) != 0)
        return -errno;
    return epoll_wait_ready(io, timeout_ns < 0 ? -1 : timeout_ns - more_ns);
}

static void epoll_release(struct urs_io *io, uint16_t buffer)
{
    URS_ASSERT(of(io)->free_count < io->pool->buffers && io->pool->in_use > 0);
    of(io)->free_buffers[of(io)->free_count++] = buffer;
    io->pool->in_use--;
}

static void epoll_wake(struct urs_io *io) { urs_wake_write(&of(io)->wake); }

static int epoll_wake_descriptor(const struct urs_io *io) { return ((const struct epoll *)io)->wake.write_fd; }

const struct urs_io_operations urs_io_epoll = {
    .name = "epoll",
    .sends_first = true,
    .open = epoll_open,
    .start = epoll_start,
    .close = epoll_close,
    .accept = epoll_accept,
    .accept_stop = epoll_accept_stop,
    .receive = epoll_receive,
    .receive_stop = epoll_receive_stop,
    .send = epoll_send,
    .writable = epoll_writable,
    .watch = epoll_watch,
    .unwatch = epoll_unwatch,
    .forget = epoll_forget,
    .submit = epoll_submit,
    .collect = epoll_collect,
    .wait = epoll_wait_ready,
    .wait_for = epoll_wait_for,
    .release = epoll_release,
    .wake = epoll_wake,
    .wake_descriptor = epoll_wake_descriptor,
};
