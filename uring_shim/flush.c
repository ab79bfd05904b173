/* Sends: one per session and flush. Bytes that a socket does not take go to the backlog of its session. */
#define _GNU_SOURCE
#include "flush.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "deadline.h"
#include "fault.h"
#include "intake.h"
#include "lifecycle.h"
#include "run.h"
#include "work.h"
#include "zero_copy.h"

enum { SEGMENTS_WAITING_MAX = 1 << 18 };

/* Checks the water marks after the backlog has grown or shrunk. */
static void note_backlog(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    if (session->backlog.bytes >= rules->backlog_high_bytes) {
        session->drain_due = true;
        /* In run_echo, a peer that does not read its replies is not read from either. */
        if (reactor->echo)
            urs_life_stop_input(reactor, session, URS_STOPPED_BY_BACKLOG);
    } else if (session->drain_due && session->backlog.bytes <= rules->backlog_low_bytes) {
        session->drain_due = false;
        if (session->state == URS_SESSION_OPEN && !session->drain_event_queued) {
            session->drain_event_queued = true;
            urs_work_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_DRAIN});
        }
        urs_life_resume_input(reactor, session, URS_STOPPED_BY_BACKLOG);
    }
}

void urs_flush_store(struct urs_reactor *reactor, struct urs_session *session, size_t from)
{
    int error = urs_backlog_store(session, &reactor->outbox, &reactor->topics, &reactor->memory, from);
    if (error != 0) {
        session->reset = true;  /* the segments are dropped already, so the stream is incomplete */
        urs_life_lose(reactor, session, error);
    } else {
        note_backlog(reactor, session);
    }
    if (URS_UNLIKELY(session->question_unsent))
        urs_deadline_left_in_part(reactor, session);
}

static uint32_t segment_vectors(struct urs_reactor *reactor, const struct urs_session *session, struct iovec *vectors)
{
    uint32_t count = 0;
    const struct urs_segment *segments = reactor->outbox.segments;
    for (uint32_t index = session->outbound.first; index != 0 && count < URS_IO_VECTORS_MAX; count++) {
        vectors[count] = (struct iovec){.iov_base = segments[index - 1].data, .iov_len = segments[index - 1].bytes};
        index = segments[index - 1].next;
    }
    return count;
}

/* Queues the session's only send of this round. Returns -EBUSY if the queue must be submitted first. */
static int send_one(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_FREE || urs_session_is_lost(session)) {
        urs_backlog_discard(session, &reactor->outbox, &reactor->topics);
        return 0;
    }
    if (session->outbound.first != 0 && (session->backlog.bytes > 0 || session->send_state != URS_SEND_IDLE))
        urs_flush_store(reactor, session, 0);
    if (session->send_state != URS_SEND_IDLE || urs_session_is_lost(session))
        return 0;
    if (session->outbound.first == 0 && session->backlog.bytes == 0) {
        if (URS_UNLIKELY(session->drain_due))
            note_backlog(reactor, session);
        urs_life_flushed(reactor, session);
        return 0;
    }
    if (reactor->vector_count + URS_IO_VECTORS_MAX > URS_VECTORS)
        return -EBUSY;

    struct iovec *vectors = reactor->vectors + reactor->vector_count;
    bool from_backlog = session->backlog.bytes > 0;
    uint32_t count = from_backlog ? urs_backlog_vectors(session, vectors, URS_IO_VECTORS_MAX)
                                           : segment_vectors(reactor, session, vectors);
    if (reactor->loans != NULL && !from_backlog) {
        int error = urs_zero_copy_send(reactor, session);
        if (error == 0) {
            session->in_flight_bytes = (uint32_t)session->outbound.bytes;
            reactor->sends++;
            urs_session_set_send(session, URS_SEND_SEGMENTS);
        }
        if (error != -ENOTSUP)
            return error;
    }
    session->in_flight_bytes = 0;
    for (uint32_t index = 0; index < count; index++)
        session->in_flight_bytes += (uint32_t)vectors[index].iov_len;
    int error = reactor->io->operations->send(reactor->io, session->slot, session->generation, session->fd, vectors,
                                              count);
    if (error != 0)
        return error;
    reactor->vector_count += count;
    reactor->sends++;
    urs_session_set_send(session, from_backlog ? URS_SEND_BACKLOG : URS_SEND_SEGMENTS);
    return 0;
}

/* The remaining bytes wait until the socket is writable, or for URS_DELAY_MS if the system was short of memory. */
static void wait_writable(struct urs_reactor *reactor, struct urs_session *session, enum urs_io_fate fate)
{
    reactor->stats.sends_short++;
    if (fate == URS_FATE_LATER
        || reactor->io->operations->writable(reactor->io, session->slot, session->generation, session->fd) != 0)
        urs_work_retry_send(reactor, session);
    else
        urs_session_set_send(session, URS_SEND_AWAITS_WRITABLE);
}

static void on_sent(struct urs_reactor *reactor, struct urs_session *session, int32_t result)
{
    enum urs_io_fate fate = urs_io_send_fate(result);
    size_t sent = result > 0 ? (size_t)result : 0;
    bool from_backlog = session->send_state == URS_SEND_BACKLOG;
    URS_ASSERT(urs_session_is_sending(session) && sent <= session->in_flight_bytes);
    reactor->stats.bytes_out += sent;
    session->sent_bytes += (uint32_t)sent;
    urs_session_set_send(session, URS_SEND_IDLE);
    session->unsure = session->unsure && sent == 0;
    if (from_backlog) {
        urs_backlog_consume(session, sent);
        note_backlog(reactor, session);
    } else if (URS_LIKELY(sent == session->outbound.bytes)) {
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        if (URS_UNLIKELY(session->drain_due))
            note_backlog(reactor, session);
        urs_life_flushed(reactor, session);
        return;
    } else if (fate != URS_FATE_LOST) {
        urs_flush_store(reactor, session, sent);
    }
    if (fate == URS_FATE_LOST)
        urs_life_lose(reactor, session, result);
    else if (session->backlog.bytes == 0)
        urs_life_flushed(reactor, session);
    else if ((uint32_t)sent == session->in_flight_bytes)
        urs_work_dirty(reactor, session);
    else
        wait_writable(reactor, session, fate);
}

/* Sends the same bytes again in this flush; they are still in place. */
static void send_again(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->send_state == URS_SEND_SEGMENTS);
    urs_session_set_send(session, URS_SEND_IDLE);
    urs_work_dirty(reactor, session);
}

/* Ensures room for `more` completions that wait to be handled. Returns the room that there is, which is less if the
 * system has no memory. */
static uint32_t reserve_completions(struct urs_reactor *reactor, uint32_t more)
{
    if (reactor->completion_room - reactor->completion_count < more && urs_fault(URS_FAULT_GROW) == 0) {
        uint32_t room = 2 * reactor->completion_room + more;
        struct urs_completion *completions = realloc(reactor->completions, room * sizeof *completions);
        if (completions != NULL) {
            reactor->completions = completions;
            reactor->completion_room = room;
        }
    }
    return reactor->completion_room - reactor->completion_count;
}

/* Handles completions of sends and keeps other completions for dispatch. Returns how many there were, or -ENOMEM if
 * there is no room for them: they then stay in the backend, and none is lost. */
static int collect_sends(struct urs_reactor *reactor)
{
    const struct urs_io_operations *io = reactor->io->operations;
    struct urs_completion batch[64];
    uint32_t room = reserve_completions(reactor, URS_COUNT(batch)) + (io->sends_first ? reactor->sends : 0);
    if (room == 0)
        return -ENOMEM;
    uint32_t count = io->collect(reactor->io, batch, (uint32_t)urs_min(room, URS_COUNT(batch)));
    for (uint32_t index = 0; index < count; index++) {
        if (batch[index].kind == URS_IO_SEND) {
            URS_ASSERT(reactor->sends > 0);
            reactor->sends--;
            on_sent(reactor, urs_core_session(reactor, batch[index].slot), batch[index].result);
        } else if (batch[index].kind == URS_IO_SEND_ZC) {
            URS_ASSERT(reactor->sends > 0);
            reactor->sends--;
            bool refused;
            struct urs_session *session = urs_zero_copy_sent(reactor, &batch[index], &refused);
            if (session != NULL && refused)
                send_again(reactor, session);
            else if (session != NULL)
                on_sent(reactor, session, batch[index].result);
        } else if (batch[index].kind == URS_IO_RELEASE) {
            urs_zero_copy_release(reactor, &batch[index]);
        } else {
            reactor->completions[reactor->completion_count++] = batch[index];
        }
    }
    return (int)count;
}

void urs_flush_collect(struct urs_reactor *reactor)
{
    URS_ASSERT(reactor->sends == 0);
    while (collect_sends(reactor) > 0)
        ;
}

/* Submits all queued requests; afterwards every send has completed. */
static int submit(struct urs_reactor *reactor)
{
    int result = reactor->io->operations->submit(reactor->io);
    while (result >= 0 && reactor->sends > 0) {
        result = collect_sends(reactor);
        /* Sends that may not wait complete as they are submitted. If a kernel defers one anyway, wait: this turn's
         * buffers must not be reused until it completes. */
        if (result == 0 && reactor->sends > 0)
            result = reactor->io->operations->wait(reactor->io, 1000000);
        if (result == -EINTR)
            result = 0;
    }
    reactor->vector_count = 0;
    return result < 0 ? result : 0;
}

/* Sends for the first `count` sessions of a list, and takes them off it. */
static int flush_list(struct urs_reactor *reactor, struct urs_slots *list, enum urs_list flag, uint32_t count)
{
    int error = 0;
    uint32_t index = 0;
    URS_ASSERT(count <= list->count);
    for (; index < count && error == 0; index++) {
        struct urs_session *session = urs_core_session(reactor, list->slots[index]);
        urs_session_leave(session, flag);
        while ((error = send_one(reactor, session)) == -EBUSY && (error = submit(reactor)) == 0)
            ;
    }
    list->count -= index;
    memmove(list->slots, list->slots + index, list->count * sizeof *list->slots);
    return error != 0 ? error : submit(reactor);
}

/* Sends for all dirty sessions, and for those that become dirty meanwhile, because more of their backlog must be sent. */
static int flush_dirty(struct urs_reactor *reactor)
{
    int error = 0;
    while (reactor->dirty.count > 0 && error == 0)
        error = flush_list(reactor, &reactor->dirty, URS_LIST_DIRTY, reactor->dirty.count);
    return error;
}

int urs_flush_sessions(struct urs_reactor *reactor, enum urs_flush_scope scope)
{
    urs_run_seal(reactor);
    int error = flush_dirty(reactor);
    if (URS_UNLIKELY(reactor->fanout.count > 0) && error == 0) {
        /* Sessions that wait for their slice keep the arena and the segments, so the size of both is bounded. */
        bool all = scope == URS_FLUSH_ALL || reactor->outbox.arena_bytes > URS_ARENA_FLUSH_BYTES
            || reactor->outbox.count > SEGMENTS_WAITING_MAX;
        uint32_t count = all ? reactor->fanout.count
                             : (uint32_t)urs_min(reactor->fanout.count, reactor->options.fanout_turn_max);
        error = flush_list(reactor, &reactor->fanout, URS_LIST_FANOUT, count);
        if (error == 0)
            error = flush_dirty(reactor);
    }
    if (error == 0 && reactor->fanout.count == 0)
        urs_outbox_reset(&reactor->outbox);
    return error;
}
