/* The invariants of the reactor, one assertion each. Lists and flags are counted twice, from the lists and from the
 * sessions, and the counts must agree. */
#include "invariants.h"

#ifdef URS_ASSERTIONS

#include "intake.h"

/* With more sessions than this, only each N-th call checks them, so that tests with ten thousand sessions stay
 * quick. */
enum { SESSIONS_EACH_CALL = 256, CALLS_SKIPPED = 64 };

static void check_slice(const struct urs_slice *slice)
{
    const struct urs_block *block = slice->block;
    URS_ASSERT(__atomic_load_n(&block->references, __ATOMIC_RELAXED) >= 1);
    URS_ASSERT(slice->start < slice->end);  /* the headroom may contain the header of a reply */
    URS_ASSERT(slice->end <= block->end && block->end <= block->capacity);
}

static void check_memory(const struct urs_session *session)
{
    size_t backlog_bytes = 0;
    for (uint32_t place = 0; place < session->backlog.count; place++) {
        const struct urs_slice *slice = urs_chain_at(&session->backlog, place);
        if (slice->block == NULL) {
            URS_ASSERT(place > 0 && place + 1 < session->backlog.count);
            continue;
        }
        check_slice(slice);
        URS_ASSERT(slice->block->memory != NULL);  /* the budget knows of every byte of a backlog */
        backlog_bytes += urs_slice_bytes(slice);
    }
    URS_ASSERT(backlog_bytes == session->backlog.bytes);
    URS_ASSERT((session->backlog.ring == NULL) == (session->backlog.count == 0));
    URS_ASSERT(!session->pong_waits || session->backlog.count > 0);
    if (session->held.block != NULL)
        check_slice(&session->held);
    const struct urs_block *partial = session->engine.partial;
    URS_ASSERT(session->engine.deflate == NULL || session->engine.deflate_terms != 0);
    URS_ASSERT(partial == NULL || (partial->end >= URS_BLOCK_HEADROOM && partial->end <= partial->capacity));
}

static void check_free(const struct urs_session *session)
{
    URS_ASSERT(session->fd < 0 && session->backlog.bytes == 0 && session->held.block == NULL);
    URS_ASSERT(session->engine.partial == NULL && session->engine.control == NULL && session->engine.deflate == NULL);
    URS_ASSERT(session->outbound.first == 0 && session->late_events == 0);
    URS_ASSERT(session->lists == 0);
    URS_ASSERT(session->receive_state == URS_RECEIVE_IDLE && session->send_state == URS_SEND_IDLE);
    URS_ASSERT((session->generation & 1) == 0);
}

/* The states of a session agree with the lists that it is on. */
static void check_lists_of(const struct urs_session *session)
{
    bool retries = session->receive_state == URS_RECEIVE_AWAITS_RETRY || session->send_state == URS_SEND_AWAITS_RETRY;
    bool waits = session->receive_state == URS_RECEIVE_AWAITS_BUFFER;
    URS_ASSERT(urs_session_is_on(session, URS_LIST_RETRIES) == retries);
    URS_ASSERT(urs_session_is_on(session, URS_LIST_BUFFERS) == waits);
    URS_ASSERT(urs_session_is_on(session, URS_LIST_DEAD) == (session->fd < 0));
}

static void check_session(const struct urs_session *session)
{
    if (session->state == URS_SESSION_FREE) {
        check_free(session);
        return;
    }
    URS_ASSERT(session->state <= URS_SESSION_AWAIT_REQUESTS);
    URS_ASSERT((session->generation & 1) == 1);
    check_memory(session);
    /* After submit no send is in flight, and every session with bytes left to send is on a list or awaits a
     * completion. */
    URS_ASSERT(!urs_session_is_sending(session));
    URS_ASSERT(session->outbound.first == 0 || (session->lists & (URS_LIST_DIRTY | URS_LIST_FANOUT)) != 0
               || urs_session_is_lost(session));
    URS_ASSERT(session->backlog.bytes == 0 || urs_session_is_on(session, URS_LIST_DIRTY)
               || session->send_state != URS_SEND_IDLE);
    /* A descriptor is closed only when no completion for it can come any more. */
    URS_ASSERT(session->fd >= 0 || session->state == URS_SESSION_AWAIT_REQUESTS);
    URS_ASSERT(session->fd >= 0 || (!urs_session_is_receiving(session) && session->send_state != URS_SEND_AWAITS_WRITABLE));
    URS_ASSERT(session->state != URS_SESSION_AWAIT_REQUESTS || urs_session_is_lost(session));
    URS_ASSERT(!urs_session_is_on(session, URS_LIST_SILENT)
               || (session->state == URS_SESSION_AWAIT_HEAD && session->held.block == NULL));
    check_lists_of(session);
    /* A mark that is set and cleared while deadlines are judged. */
    URS_ASSERT(!session->unread);
    /* The deadline of an open session is the deadline of its pong. */
    URS_ASSERT(session->state != URS_SESSION_OPEN || !session->has_deadline || session->ping_sent_us != 0);
}

/* The sums of the flags and counts of all sessions. */
struct sums {
    uint32_t dirty;
    uint32_t fanout;
    uint32_t feed_list;
    uint32_t await_buffers;
    uint32_t retries;
    uint32_t dead;
    uint32_t in_use;
    uint32_t handshakes;
    uint32_t late_events;
};

static uint32_t requests_of_listeners(const struct urs_reactor *reactor)
{
    uint32_t requests = 0;
    for (uint32_t index = 0; index < reactor->listener_count; index++)
        requests += reactor->listeners[index].requests;
    return requests;
}

static void check_sessions(const struct urs_reactor *reactor)
{
    struct sums sums = {0};
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        const struct urs_session *session = urs_core_session(reactor, slot);
        URS_ASSERT(session->slot == slot);
        check_session(session);
        sums.dirty += urs_session_is_on(session, URS_LIST_DIRTY);
        sums.fanout += urs_session_is_on(session, URS_LIST_FANOUT);
        sums.feed_list += urs_session_is_on(session, URS_LIST_FEED);
        sums.await_buffers += urs_session_is_on(session, URS_LIST_BUFFERS);
        sums.retries += urs_session_is_on(session, URS_LIST_RETRIES);
        sums.dead += urs_session_is_on(session, URS_LIST_DEAD);
        sums.in_use += session->state != URS_SESSION_FREE;
        sums.handshakes += session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_DECISION;
        sums.late_events += session->late_events;
    }
    URS_ASSERT(sums.dirty == reactor->dirty.count);
    URS_ASSERT(sums.fanout == reactor->fanout.count);
    URS_ASSERT(sums.feed_list == reactor->feed_list.count);
    URS_ASSERT(sums.await_buffers == urs_intake_waiting(reactor));
    URS_ASSERT(sums.retries == reactor->retries.count);
    URS_ASSERT(sums.dead == reactor->dead.count);
    URS_ASSERT(sums.in_use == reactor->sessions.in_use);
    URS_ASSERT(sums.handshakes == reactor->handshakes);
    URS_ASSERT(sums.handshakes == requests_of_listeners(reactor));
    URS_ASSERT(sums.late_events == reactor->late_count);
}

/* A queue contains as many sessions as it counts, and ends with its last session. */
static void check_queue(const struct urs_reactor *reactor, const struct urs_queue *queue)
{
    uint32_t next = queue->count == 0 ? 0 : queue->first;
    for (uint32_t index = 0; index < queue->count; index++) {
        URS_ASSERT(next != 0 && (index + 1 < queue->count || next == queue->last));
        const struct urs_session *session = urs_core_session(reactor, next - 1);
        URS_ASSERT(session->receive_state == URS_RECEIVE_AWAITS_BUFFER);
        next = session->next_slot;
    }
    URS_ASSERT(next == 0);
}

/* A slot on a list has the bit of that list. With the equal counts above, it is on the list once. */
static void check_list(const struct urs_reactor *reactor, const struct urs_slots *slots, enum urs_list list)
{
    for (uint32_t index = 0; index < slots->count; index++)
        URS_ASSERT(urs_session_is_on(urs_core_session(reactor, slots->slots[index]), list));
}

/* A ready watch is on the list once, and a watch that is in use has a descriptor. */
static void check_watches(const struct urs_watches *watches)
{
    uint32_t ready = 0;
    for (uint32_t slot = 0; slot < watches->room; slot++) {
        const struct urs_watch *watch = &watches->all[slot];
        bool free = watch->state == URS_WATCH_FREE;
        URS_ASSERT((watch->fd < 0) == free && (watch->generation & 1) == !free);
        URS_ASSERT(!free || !watch->armed);
        URS_ASSERT(watch->state < URS_WATCH_STOPPING || watch->armed);
        ready += watch->state == URS_WATCH_READY;
    }
    URS_ASSERT(ready == watches->ready_count);
    for (uint32_t index = 0; index < watches->ready_count; index++)
        URS_ASSERT(watches->all[watches->ready[index]].state == URS_WATCH_READY);
}

void urs_invariants_check(const struct urs_reactor *reactor)
{
    URS_ASSERT(reactor->sends == 0 && reactor->vector_count == 0 && reactor->run.topic == 0);
    URS_ASSERT(reactor->applied <= reactor->event_count && reactor->event_count <= URS_EVENTS_MAX);
    URS_ASSERT(reactor->visible <= reactor->event_count);
    URS_ASSERT(reactor->late_count <= reactor->late_room);
    URS_ASSERT(reactor->completion_next <= reactor->completion_count);
    URS_ASSERT(reactor->completion_count <= reactor->completion_room);
    URS_ASSERT(reactor->used_count <= reactor->pool.in_use && reactor->pool.in_use <= reactor->pool.buffers);
    URS_ASSERT(reactor->handshakes <= reactor->sessions.in_use);
    if (reactor->sessions.slots > SESSIONS_EACH_CALL && reactor->turn % CALLS_SKIPPED != 0)
        return;
    check_sessions(reactor);
    check_watches(&reactor->watches);
    check_list(reactor, &reactor->dirty, URS_LIST_DIRTY);
    check_list(reactor, &reactor->fanout, URS_LIST_FANOUT);
    check_list(reactor, &reactor->feed_list, URS_LIST_FEED);
    check_list(reactor, &reactor->retries, URS_LIST_RETRIES);
    check_list(reactor, &reactor->dead, URS_LIST_DEAD);
    check_queue(reactor, &reactor->lively);
    check_queue(reactor, &reactor->heavy);
}

#endif
