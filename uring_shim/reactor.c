/* The calls from Python: opening and closing a reactor, replies and commands to its sessions, counters. */
#define _GNU_SOURCE
#include "reactor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"
#include "fault.h"
#include "frame.h"

/* From this size on a system call of its own, which displaces Python's data from the CPU caches, costs less than
 * copying the payload into the arena: at 16 KiB it costs more, at 32 KiB the same, at 64 KiB less (bench, server
 * uringws_send). */
enum { DIRECT_BYTES_MIN = 32768, LISTENERS_MIN = 4 };

_Thread_local uint64_t urs_thread_number;

/* ---- the reactor --------------------------------------------------------------------------------------------- */

static void free_all(struct urs_reactor *reactor)
{
    if (reactor->io != NULL)
        reactor->io->operations->close(reactor->io);
    urs_zero_copy_close(reactor);
    urs_wheel_close(&reactor->wheel);
    urs_outbox_clear(&reactor->outbox);
    urs_memory_clear(&reactor->memory);
    urs_rules_clear(&reactor->rules);
    urs_sessions_close(&reactor->sessions);
    urs_watch_close(reactor);
    free(reactor->dirty.slots);
    free(reactor->ready.slots);
    free(reactor->delayed.slots);
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
    urs_turn_clock(reactor);
    urs_wheel_open(&reactor->wheel, reactor->now_ms);
    urs_admission_open(reactor);
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
        if (session->fd >= 0)
            close_socket(session->fd,
                         session->reset || session->backlog.bytes > 0 || session->outbound.first != 0);
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        urs_session_drop_memory(session);
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
}

int urs_reactor_start(struct urs_reactor *reactor)
{
    if (reactor->started)
        return urs_core_check(reactor);
    int error = reactor->io->operations->start(reactor->io);
    if (error != 0)
        return error;
    reactor->started = true;
    urs_reactor_take(reactor);
    urs_turn_clock(reactor);
    urs_admission_arm(reactor);
    return 0;
}

int urs_reactor_add_rules(struct urs_reactor *reactor, const struct urs_rules *rules)
{
    int refused = urs_core_check(reactor);
    return refused != 0 ? refused : urs_rules_add(&reactor->rules, rules);
}

int urs_reactor_listen(struct urs_reactor *reactor, int fd, bool local, uint8_t rules)
{
    if (reactor->listener_count == reactor->listener_room) {
        uint32_t room = 2 * reactor->listener_room + LISTENERS_MIN;
        struct urs_listener *listeners = realloc(reactor->listeners, room * sizeof *listeners);
        if (listeners == NULL)
            return -ENOMEM;
        reactor->listeners = listeners;
        reactor->listener_room = room;
    }
    URS_ASSERT(reactor->listener_count < reactor->listener_room && rules < reactor->rules.count);
    reactor->listeners[reactor->listener_count] = (struct urs_listener){.fd = fd, .local = local, .rules = rules};
    reactor->listener_count++;
    if (reactor->started)
        urs_admission_arm(reactor);
    return (int)reactor->listener_count - 1;
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
    urs_turn_apply(reactor, *reactor->options.handled, URS_NO_EVENT);
    int error = urs_turn_flush(reactor);
    if (error == 0)
        urs_outbox_reset(&reactor->outbox);
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

int urs_reactor_adopt(struct urs_reactor *reactor, int fd, uint8_t rules, const uint8_t *prefix, size_t prefix_bytes,
                      uint64_t *id)
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
    bool local = address.ss_family == AF_UNIX;
    URS_ASSERT(rules < reactor->rules.count);
    if (!local && reactor->rules.sets[rules].tcp_nodelay)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct urs_session *session = urs_life_new(reactor, fd, local, rules);
    if (session == NULL)
        return -ENOMEM;
    if (prefix_bytes > 0)
        error = urs_session_hold(session, &reactor->memory, prefix, prefix_bytes);
    if (error != 0) {
        urs_wheel_cancel(&reactor->wheel, session->slot);
        urs_session_free(&reactor->sessions, session);
        return error;
    }
    urs_admission_peer(session);
    reactor->stats.accepted++;
    reactor->handshakes++;  /* urs_life_open decrements it again */
    urs_life_open(reactor, session);
    *id = urs_session_id(session);
    return 0;
}

void urs_reactor_drain(struct urs_reactor *reactor, uint32_t index, unsigned code)
{
    urs_turn_apply(reactor, index, index - 1);
    urs_reactor_stop_listening(reactor);
    /* Submits the end of accepting now: a client that sees a close frame then finds the port closed as soon as the
     * owner has closed the listening socket too. */
    if (reactor->started)
        reactor->io->operations->wait(reactor->io, 0);
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state == URS_SESSION_OPEN) {
            urs_life_close(reactor, session, code, NULL, 0);
        } else if (session->silent && urs_io_input_waiting(session->fd) != URS_INPUT_WAITS) {
            /* It has asked for nothing, so it would not read an answer and would not close. Browsers open such
             * connections in advance. */
            reactor->stats.refused[URS_REFUSED_DRAINING]++;
            urs_life_end(reactor, session);
        } else if (session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_VERDICT) {
            urs_admission_refuse(reactor, session, URS_REFUSED_DRAINING);
        }
        if (reactor->outbox.arena_bytes > URS_ARENA_FLUSH_BYTES)
            urs_turn_flush(reactor);
    }
}

uint32_t urs_reactor_unread(struct urs_reactor *reactor) { return urs_deadline_unread(reactor); }

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

/* ---- one session --------------------------------------------------------------------------------------------- */

/* Finds the session with that id, for a call by the owner. Returns 0 or the error. */
static int find(struct urs_reactor *reactor, uint64_t id, struct urs_session **session)
{
    if (reactor == NULL)
        return URS_ERROR_STALE;
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    *session = urs_session_find(&reactor->sessions, id);
    return *session == NULL ? URS_ERROR_STALE : 0;
}

static int answer_request(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes, bool open)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (session->state != URS_SESSION_AWAIT_VERDICT && (open || session->state != URS_SESSION_AWAIT_HEAD))
        return URS_ERROR_STATE;
    if (session->lost)
        return URS_ERROR_CLOSING;
    int error = 0;
    if (bytes > 0)
        error = urs_outbound_bytes(&reactor->outbox, &session->outbound, response, bytes);
    if (error != 0) {
        urs_life_lose(reactor, session, error);
        return error;
    }
    if (open) {
        urs_turn_dirty(reactor, session);
        urs_life_open(reactor, session);
    } else {
        urs_life_finish(reactor, session);
    }
    return 0;
}

int urs_session_accept(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes)
{
    return answer_request(reactor, id, response, bytes, true);
}

int urs_session_reject(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes)
{
    return answer_request(reactor, id, response, bytes, false);
}

/* Applies on_full to a message that does not fit into the backlog. */
static int refuse_message(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    reactor->stats.drops++;
    if (rules->on_full == URS_ON_FULL_ERROR)
        return URS_ERROR_FULL;
    if (rules->on_full == URS_ON_FULL_CLOSE)
        urs_life_fail(reactor, session, URS_FAILURE_BACKLOG);
    return URS_DROPPED;
}

/* Copies what the socket did not take into a block. The next flush moves the block to the backlog and sends from
 * there. */
static int queue_rest(struct urs_reactor *reactor, struct urs_session *session, const struct iovec *vectors, size_t sent)
{
    size_t rest = vectors[0].iov_len + vectors[1].iov_len - sent;
    struct urs_slice slice = {.block = urs_block_new(&reactor->memory, rest)};
    if (slice.block == NULL)
        return urs_memory_error(&reactor->memory, rest);
    slice.start = slice.end = URS_BLOCK_HEADROOM;
    for (size_t index = 0; index < 2; index++) {
        size_t skip = urs_min(sent, vectors[index].iov_len);
        size_t bytes = vectors[index].iov_len - skip;
        memcpy(slice.block->bytes + slice.end, (const uint8_t *)vectors[index].iov_base + skip, bytes);
        slice.end += (uint32_t)bytes;
        sent -= skip;
    }
    URS_ASSERT(sent == 0 && urs_slice_bytes(&slice) == rest);
    urs_block_seal(slice.block);
    return urs_outbound_slice(&reactor->outbox, &session->outbound, slice);
}

/* Sends a large payload at once from the caller's memory, if no other bytes of the session wait. Only the bytes that
 * the socket does not take are copied. Returns an urs_send_outcome or a negative result. */
static int send_direct(struct urs_reactor *reactor, struct urs_session *session, uint8_t opcode, const uint8_t *data,
                       size_t bytes)
{
    uint8_t header[URS_FRAME_ANSWER_BYTES_MAX];
    size_t header_bytes = urs_frame_write(header, opcode, true, bytes);
    struct iovec vectors[2] = {{.iov_base = header, .iov_len = header_bytes},
                               {.iov_base = (uint8_t *)(uintptr_t)data, .iov_len = bytes}};
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = 2};
    ssize_t result = urs_sys_sendmsg(session->fd, &message);
    size_t sent = result > 0 ? (size_t)result : 0;
    if (result < 0 && urs_io_send_fate(-errno) == URS_FATE_LOST) {
        urs_life_lose(reactor, session, -errno);
        return URS_ERROR_CLOSING;
    }
    reactor->stats.sends_direct++;
    reactor->stats.bytes_out += sent;
    session->sent_bytes += (uint32_t)sent;
    if (sent == header_bytes + bytes)
        return URS_SENT;
    int error = queue_rest(reactor, session, vectors, sent);
    if (error != 0) {
        session->reset = true;
        urs_life_lose(reactor, session, error);
        return error;
    }
    urs_turn_dirty(reactor, session);
    return URS_QUEUED;
}

/* Returns the number of waiting bytes, as Python sees it. A caller that sees the high water mark may stop sending, so
 * an URS_EVENT_DRAIN must follow, even if the next flush sends all bytes. */
static size_t waiting(struct urs_reactor *reactor, struct urs_session *session)
{
    size_t bytes = session->backlog.bytes + session->outbound.bytes;
    if (bytes >= urs_core_rules(reactor, session)->backlog_high_bytes)
        session->above_high = true;
    return bytes;
}

int urs_session_send(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode, const uint8_t *data,
                     size_t bytes)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_turn_apply(reactor, index, URS_NO_EVENT);
    enum urs_output kind = opcode < URS_OPCODE_CLOSE ? URS_OUTPUT_MESSAGE : URS_OUTPUT_CONTROL;
    enum urs_gate gate = urs_gate_check(session, urs_core_rules(reactor, session), kind, bytes);
    if (gate != URS_GATE_OPEN)
        return gate == URS_GATE_FULL ? refuse_message(reactor, session) : URS_ERROR_CLOSING;
    size_t pending = session->backlog.bytes + session->outbound.bytes;
    reactor->stats.messages_out += opcode < URS_OPCODE_CLOSE;
    reactor->stats.pings_sent += opcode == URS_OPCODE_PING;

    int result;
    if (bytes >= DIRECT_BYTES_MIN && pending == 0 && !session->polling && !session->delayed) {
        result = send_direct(reactor, session, opcode, data, bytes);
    } else {
        result = urs_outbound_frame(&reactor->outbox, &session->outbound, opcode, true, data, bytes);
        if (result != 0)
            return result;
        result = session->backlog.bytes > 0 || session->polling ? URS_QUEUED : URS_SENT;
        urs_turn_dirty(reactor, session);
    }
    waiting(reactor, session);
    if (reactor->outbox.arena_bytes > URS_ARENA_FLUSH_BYTES && reactor->started) {
        int error = urs_turn_flush(reactor);
        if (error != 0)
            return error;
        urs_outbox_reset(&reactor->outbox);
        result = session->backlog.bytes > 0 ? URS_QUEUED : result;
    }
    return result;
}

int urs_session_send_event(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode)
{
    if (reactor == NULL || index >= reactor->event_count || index < reactor->applied
        || reactor->targets[index] == URS_TARGET_OTHER)
        return URS_ERROR_STATE;
    const struct urs_item *item = &reactor->events[index].item;
    if (opcode == 0)
        opcode = item->opcode;
    if (opcode == URS_OPCODE_CONTINUATION)
        return URS_ERROR_STATE;
    return urs_session_send(reactor, id, index, opcode, item->payload, item->bytes);
}

int urs_session_close(struct urs_reactor *reactor, uint64_t id, uint32_t index, unsigned code, const uint8_t *reason,
                      size_t bytes)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_turn_apply(reactor, index, index - 1);
    if (urs_gate_check(session, urs_core_rules(reactor, session), URS_OUTPUT_CLOSE, 2 + bytes) != URS_GATE_OPEN)
        return URS_ERROR_CLOSING;
    return urs_life_close(reactor, session, code, reason, bytes);
}

int urs_session_abort(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_life_lose(reactor, session, -ECONNABORTED);
    return 0;
}

int urs_session_pause(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (session->state != URS_SESSION_OPEN || session->lost)
        return URS_ERROR_CLOSING;
    session->paused = true;
    urs_turn_receive(reactor, session);
    return 0;
}

int urs_session_resume(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (session->state != URS_SESSION_OPEN || session->lost)
        return URS_ERROR_CLOSING;
    if (session->paused) {
        session->paused = false;
        urs_deadline_resumed(reactor, session);
        if (session->held.block != NULL)
            urs_turn_ready(reactor, session);
        urs_turn_receive(reactor, session);
    }
    return 0;
}

int urs_session_failure(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    return refused != 0 ? refused : session->failure;
}

int64_t urs_session_buffered(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    return refused != 0 ? refused : (int64_t)waiting(reactor, session);
}

double urs_session_latency(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused == URS_ERROR_STALE)
        return -1.0;
    return refused != 0 ? (double)refused : (double)session->latency_seconds;
}

int urs_session_descriptor(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    return refused != 0 ? refused : session->fd;
}

int urs_session_peer(struct urs_reactor *reactor, uint64_t id, struct urs_peer *peer)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused == 0)
        *peer = session->peer;
    return refused;
}

int urs_session_settle_peer(struct urs_reactor *reactor, uint64_t id, const struct urs_peer *peer)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_admission_leave(reactor, session->peer_hash);
    session->peer_hash = 0;
    if (peer != NULL)
        session->peer = *peer;
    return urs_admission_count(reactor, session) ? 0 : URS_ERROR_LIMIT;
}

int urs_session_state(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused == URS_ERROR_STALE ? URS_SESSION_FREE : refused;
    /* The session is lost, and only its event is still to come. */
    return session->lost && session->state == URS_SESSION_OPEN ? URS_SESSION_AWAIT_FLUSH : session->state;
}
