/* The calls from Python to a whole reactor: opening and closing it, listening, adopting, draining, counters. */
#define _GNU_SOURCE
#include "reactor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "admission.h"
#include "apply.h"
#include "core.h"
#include "fault.h"
#include "flush.h"
#include "intake.h"
#include "lifecycle.h"
#include "peers.h"
#include "upkeep.h"
#include "watch.h"
#include "work.h"
#include "zero_copy.h"

enum { LISTENERS_MIN = 4 };

URS_THREAD_LOCAL uint64_t urs_thread_number;

/* ---- the reactor --------------------------------------------------------------------------------------------- */

static void free_all(struct urs_reactor *reactor)
{
    if (reactor->io != NULL)
        reactor->io->operations->close(reactor->io);
    urs_zero_copy_close(reactor);
    urs_wheel_close(&reactor->wheel);
    urs_outbox_clear(&reactor->outbox);
    urs_topics_close(&reactor->topics);
    urs_memory_clear(&reactor->memory);
    urs_rules_clear(&reactor->rules);
    urs_sessions_close(&reactor->sessions);
    urs_watch_close(reactor);
    free(reactor->dirty.slots);
    free(reactor->fanout.slots);
    free(reactor->feed_list.slots);
    free(reactor->retries.slots);
    free(reactor->dead.slots);
    free(reactor->late);
    free(reactor->ips);
    free(reactor->listeners);
    free(reactor->events);
    free(reactor->targets);
    free(reactor->offsets);
    free(reactor->lengths);
    free(reactor->opcodes);
    free(reactor->completions);
    free(reactor->used_buffers);
    free(reactor->vectors);
    free(reactor);
}

struct urs_reactor *urs_reactor_open(const char *backend, const struct urs_reactor_options *options,
                                     const struct urs_rules *rules, struct urs_io_report *report)
{
    const struct urs_io_operations *operations = strcmp(backend, "io_uring") == 0 ? &urs_io_uring : &urs_io_epoll;
    *report = (struct urs_io_report){.error = -ENOMEM, .stage = "malloc"};
    struct urs_reactor *reactor = calloc(1, sizeof *reactor);
    if (reactor == NULL)
        return NULL;
    reactor->options = *options;
    reactor->memory.bytes_max = options->memory_bytes_max;
    reactor->events = malloc(URS_EVENTS_MAX * sizeof *reactor->events);
    reactor->targets = malloc(URS_EVENTS_MAX * sizeof *reactor->targets);
    reactor->offsets = malloc(URS_EVENTS_MAX * sizeof *reactor->offsets);
    reactor->lengths = malloc(URS_EVENTS_MAX * sizeof *reactor->lengths);
    reactor->opcodes = malloc(URS_EVENTS_MAX * sizeof *reactor->opcodes);
    reactor->completions = malloc(URS_COMPLETIONS * sizeof *reactor->completions);
    reactor->completion_room = URS_COMPLETIONS;
    reactor->vectors = malloc(URS_VECTORS * sizeof *reactor->vectors);
    int error = urs_pool_open(&reactor->pool, options->pool_memory, options->receive_buffers,
                              options->receive_buffer_bytes);
    reactor->used_buffers = malloc(options->receive_buffers * sizeof *reactor->used_buffers);
    bool missing = urs_rules_add(&reactor->rules, rules) < 0 || reactor->events == NULL || reactor->targets == NULL || reactor->offsets == NULL
        || reactor->lengths == NULL || reactor->opcodes == NULL || reactor->completions == NULL
        || reactor->vectors == NULL || reactor->used_buffers == NULL;
    if (missing || error != 0) {
        report->error = error != 0 ? error : -ENOMEM;
        free_all(reactor);
        return NULL;
    }
    URS_ASSERT(reactor->rules.count == 1 && options->handled != NULL && options->echo_flags != NULL);
    urs_work_clock(reactor);
    urs_wheel_open(&reactor->wheel, reactor->now_ms);
    urs_peers_open(reactor);
    error = operations->open(&reactor->io, &reactor->pool, options->ring_entries,
                             options->zero_copy != URS_ZERO_COPY_NEVER, report);
    if (error != 0)
        reactor->io = NULL;
    else
        report->error = error = urs_zero_copy_open(reactor, report->zero_copy);
    if (error != 0) {
        free_all(reactor);
        return NULL;
    }
    return reactor;
}

/* Ends the connection, even if a forked child or a duplicate of the descriptor keeps the socket open. */
static void close_socket(int fd, bool reset)
{
    URS_ASSERT(fd >= 0);
    urs_io_disconnect(fd, reset);
    close(fd);
}

/* Closes accepted connections for which no session was created. */
static void close_accepted(const struct urs_completion *completions, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++)
        if (completions[index].kind == URS_IO_ACCEPT && completions[index].result >= 0)
            close_socket(completions[index].result, false);
}

static void disown(struct urs_reactor *reactor)
{
    if (reactor->io->operations->disown != NULL)
        reactor->io->operations->disown(reactor->io);
}

/* Ends accepting, and closes the accepted connections that no turn has seen. */
static void close_unseen(struct urs_reactor *reactor)
{
    struct urs_completion batch[64];
    uint32_t news, count;
    URS_ASSERT(reactor->completion_next <= reactor->completion_count);
    close_accepted(reactor->completions + reactor->completion_next,
                   reactor->completion_count - reactor->completion_next);
    if (!reactor->started)
        return;
    urs_reactor_stop_listening(reactor);
    do {
        /* This also delivers completions that overflowed the ring, now that there is room. */
        reactor->io->operations->wait(reactor->io, 0);
        for (news = 0; (count = reactor->io->operations->collect(reactor->io, batch, URS_COUNT(batch))) > 0;) {
            close_accepted(batch, count);
            /* A watched descriptor that stays ready is reported each time. */
            for (uint32_t index = 0; index < count; index++)
                news += batch[index].kind != URS_IO_WATCH;
        }
    } while (news > 0);
}

void urs_reactor_close(struct urs_reactor *reactor)
{
    if (reactor->forked) {
        /* Another thread of the parent may have been in the middle of a turn, so the lists may be half changed: they
         * stay until this process ends. The same holds for the descriptors, which are copies, and for the ring, which
         * belongs to the parent. */
        free(reactor);
        return;
    }
    URS_ASSERT(!reactor->dispatching && reactor->io != NULL);
    for (uint32_t index = reactor->applied; index < reactor->event_count; index++)
        urs_block_drop(reactor->events[index].item.block);
    for (uint32_t index = 0; index < reactor->late_count; index++)
        urs_block_drop(reactor->late[index].item.block);
    if (reactor->owner != urs_thread_number)
        disown(reactor);  /* the owner did not close the reactor, and another thread frees it */
    close_unseen(reactor);
    /* The ring first: its armed requests must not outlive their descriptors and memory. */
    reactor->io->operations->close(reactor->io);
    reactor->io = NULL;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state == URS_SESSION_FREE)
            continue;
        URS_ASSERT((session->fd < 0) == urs_session_is_on(session, URS_LIST_DEAD));
        if (session->fd >= 0)
            close_socket(session->fd,
                         session->reset || session->backlog.bytes > 0 || session->outbound.first != 0);
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        urs_session_drop_memory(session);
        urs_topics_leave(&reactor->topics, &reactor->sessions, session);
    }
    free_all(reactor);
}

void urs_reactor_take(struct urs_reactor *reactor)
{
    static uint64_t numbers;
    if (urs_thread_number == 0)
        urs_thread_number = __atomic_add_fetch(&numbers, 1, __ATOMIC_RELAXED);
    if (reactor->owner != 0 && reactor->owner != urs_thread_number)
        disown(reactor);
    reactor->owner = urs_thread_number;
    URS_ASSERT(reactor->owner != 0);
}

int urs_reactor_start(struct urs_reactor *reactor)
{
    if (reactor->started)
        return urs_core_check(reactor);
    URS_ASSERT(reactor->owner == 0);
    int error = reactor->io->operations->start(reactor->io);
    if (error != 0)
        return error;
    reactor->started = true;
    urs_reactor_take(reactor);
    URS_ASSERT(urs_core_check(reactor) == 0 || reactor->forked);
    urs_work_clock(reactor);
    /* A ring that has not started cannot submit, so it had no room for the receives of more sessions than it has
     * entries. It has now. */
    if (reactor->retry_at_ms != 0)
        reactor->retry_at_ms = reactor->now_ms;
    urs_admission_arm(reactor);
    return 0;
}

int urs_reactor_add_rules(struct urs_reactor *reactor, const struct urs_rules *rules)
{
    int refused = urs_core_check(reactor);
    return refused != 0 ? refused : urs_rules_add(&reactor->rules, rules);
}

/* Returns the index of a place for a listener, or -ENOMEM. The place of a closed listener is used again once no
 * completion and no request names it. */
static int listener_place(struct urs_reactor *reactor)
{
    for (uint32_t index = 0; index < reactor->listener_count; index++) {
        const struct urs_listener *listener = &reactor->listeners[index];
        if (listener->state == URS_LISTENER_CLOSED && !listener->armed && listener->requests == 0)
            return (int)index;
    }
    if (reactor->listener_count == reactor->listener_room) {
        uint32_t room = 2 * reactor->listener_room + LISTENERS_MIN;
        struct urs_listener *listeners = realloc(reactor->listeners, room * sizeof *listeners);
        if (listeners == NULL)
            return -ENOMEM;
        reactor->listeners = listeners;
        reactor->listener_room = room;
    }
    URS_ASSERT(reactor->listener_count < reactor->listener_room);
    return (int)reactor->listener_count++;
}

int urs_reactor_listen(struct urs_reactor *reactor, int fd, bool is_unix, uint8_t rules)
{
    URS_ASSERT(fd >= 0 && rules < reactor->rules.count);
    int index = listener_place(reactor);
    if (index < 0)
        return index;
    reactor->listeners[index] = (struct urs_listener){.fd = fd, .is_unix = is_unix, .rules = rules};
    if (reactor->started)
        urs_admission_arm(reactor);
    return index;
}

int urs_reactor_unlisten(struct urs_reactor *reactor, uint32_t index)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    URS_ASSERT(index < reactor->listener_count);
    struct urs_listener *listener = &reactor->listeners[index];
    if (listener->state != URS_LISTENER_OPEN)
        return URS_ERROR_STALE;
    listener->state = URS_LISTENER_CLOSING;
    urs_admission_arm(reactor);
    URS_ASSERT(listener->state != URS_LISTENER_OPEN);
    /* Submits the end of accepting now, as in urs_reactor_drain. */
    int error = reactor->started ? reactor->io->operations->wait(reactor->io, 0) : 0;
    return error == -EINTR ? 0 : error;
}

void urs_reactor_stop_listening(struct urs_reactor *reactor)
{
    reactor->draining = true;
    for (uint32_t index = 0; index < reactor->listener_count; index++) {
        struct urs_listener *listener = &reactor->listeners[index];
        if (listener->armed && listener->state != URS_LISTENER_CLOSED)
            reactor->io->operations->accept_stop(reactor->io, index, listener->fd);
    }
}

int urs_reactor_flush_handled(struct urs_reactor *reactor)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    urs_apply_events(reactor, *reactor->options.handled, URS_NO_EVENT);
    int error = urs_flush_sessions(reactor, URS_FLUSH_SLICE);
    URS_ASSERT(error != 0 || (reactor->sends == 0 && reactor->dirty.count == 0));
    return error;
}

struct urs_event *urs_reactor_events(struct urs_reactor *reactor) { return reactor->events; }

struct urs_event_columns urs_reactor_columns(struct urs_reactor *reactor)
{
    return (struct urs_event_columns){.targets = reactor->targets, .offsets = reactor->offsets,
                                      .lengths = reactor->lengths, .opcodes = reactor->opcodes};
}

void urs_reactor_forked(struct urs_reactor *reactor) { reactor->forked = true; }

void urs_reactor_wake(struct urs_reactor *reactor) { reactor->io->operations->wake(reactor->io); }

int urs_reactor_wake_descriptor(struct urs_reactor *reactor)
{
    return reactor->io->operations->wake_descriptor(reactor->io);
}

uint32_t urs_reactor_sessions(const struct urs_reactor *reactor) { return reactor->sessions.in_use; }

uint64_t urs_reactor_id(struct urs_reactor *reactor, uint32_t slot)
{
    return urs_session_id(urs_core_session(reactor, slot));
}

int urs_reactor_adopt(struct urs_reactor *reactor, int fd, uint8_t rules, uint16_t deflate_terms, const uint8_t *prefix,
                      size_t prefix_bytes, uint64_t *id)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    int one = 1;
    int error = 0;
    if (getpeername(fd, (struct sockaddr *)&address, &size) != 0)
        return -errno;
    if (reactor->draining
        || (reactor->options.sessions_max != 0 && reactor->sessions.in_use >= reactor->options.sessions_max))
        return URS_ERROR_LIMIT;
    bool is_unix = address.ss_family == AF_UNIX;
    URS_ASSERT(rules < reactor->rules.count);
    if (!is_unix && reactor->rules.sets[rules].tcp_nodelay)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct urs_session *session = urs_life_new(reactor, fd, is_unix, rules);
    if (session == NULL)
        return -ENOMEM;
    if (prefix_bytes > 0)
        error = urs_session_hold(session, &reactor->memory, prefix, prefix_bytes);
    if (error != 0) {
        urs_wheel_cancel(&reactor->wheel, session->slot);
        urs_session_free(&reactor->sessions, session);
        return error;
    }
    urs_engine_agree(&session->engine, deflate_terms);
    session->listener = URS_NO_LISTENER;
    urs_peers_read(session);
    reactor->stats.accepted++;
    reactor->handshakes++;  /* urs_life_open decrements it again */
    urs_life_open(reactor, session);
    URS_ASSERT(urs_session_is_open(session) && reactor->sessions.in_use > 0);
    *id = urs_session_id(session);
    return 0;
}

void urs_reactor_drain(struct urs_reactor *reactor, uint32_t index, unsigned code)
{
    urs_apply_events(reactor, index, index - 1);
    urs_reactor_stop_listening(reactor);
    URS_ASSERT(reactor->draining);
    /* Submits the end of accepting now: a client that sees a close frame then finds the port closed as soon as the
     * owner has closed the listening socket too. */
    if (reactor->started)
        reactor->io->operations->wait(reactor->io, 0);
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state == URS_SESSION_OPEN) {
            urs_life_close(reactor, session, code, NULL, 0);
        } else if (urs_session_is_on(session, URS_LIST_SILENT)
                   && urs_io_input_waiting(session->fd) != URS_INPUT_WAITS) {
            /* It has asked for nothing, so it would not read an answer and would not close. Browsers open such
             * connections in advance. */
            reactor->stats.refused[URS_REFUSED_DRAINING]++;
            urs_life_end(reactor, session);
        } else if (session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_DECISION) {
            urs_admission_refuse(reactor, session, URS_REFUSED_DRAINING);
        }
        (void)urs_flush_arena(reactor);  /* if the backend is unusable, the next turn reports it */
    }
}

uint32_t urs_reactor_unread(struct urs_reactor *reactor) { return urs_upkeep_unread(reactor); }

void urs_reactor_cut(struct urs_reactor *reactor)
{
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state != URS_SESSION_FREE && session->state != URS_SESSION_AWAIT_REQUESTS)
            urs_life_lose(reactor, session, -ECONNABORTED);
    }
}

void urs_reactor_read_stats(struct urs_reactor *reactor, struct urs_reactor_stats *stats)
{
    *stats = reactor->stats;
    stats->cq_overflows = reactor->io->stats.cq_overflows;
    stats->enters = reactor->io->stats.enters;
    stats->memory_bytes = reactor->memory.bytes_used;
    stats->sessions = reactor->sessions.in_use;
    stats->sessions_most = reactor->sessions.in_use_max;
    stats->handshakes = reactor->handshakes;
    stats->pool_buffers = reactor->pool.buffers;
    stats->pool_in_use = reactor->pool.in_use;
    stats->pool_in_use_most = reactor->pool.in_use_max;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++)
        stats->queued_bytes += urs_core_session(reactor, slot)->backlog.bytes;
}
