/* Arms and stops receives. Decides which sessions receive while receive buffers are short, and which receives have
 * missed a reset. Sessions that wait for a buffer are in two queues: lively ones, whose last receive was small, and
 * heavy ones. Each turn arms as many of them as there are free buffers. */
#define _GNU_SOURCE
#include "intake.h"

#include <poll.h>

#include "work.h"

enum {
    HEAVY_SHARE = 8,                     /* a receive of more than 1/8 of a buffer makes a session heavy */
    HEAVY_PART_MIN = 4,                  /* heavy sessions get at least 1/4 of the free buffers ... */
    HEAVY_PART_MAX = 2,                  /* ... and at most 1/2 of them */
    SHORT_TURNS = 64,                    /* turns for which buffers count as short after a receive found none */
    LOOKS_PER_TURN = 4096,               /* sessions per turn; the unsure ones among them share system calls */
    LOOKS_PER_CALL = 64
};

void urs_intake_shortage(struct urs_reactor *reactor)
{
    reactor->stats.enobufs_parks++;
    reactor->short_until_turn = reactor->stats.turns + SHORT_TURNS;
}

bool urs_intake_is_short(const struct urs_reactor *reactor)
{
    return reactor->stats.turns < reactor->short_until_turn || urs_intake_waiting(reactor) > 0;
}

void urs_intake_measure(const struct urs_reactor *reactor, struct urs_session *session, size_t bytes)
{
    session->heavy = bytes > reactor->pool.buffer_bytes / HEAVY_SHARE;
}

/* Once open, receive only when the engine has no held input left: further input of a fast peer then stays in its
 * socket. */
static bool wants_input(const struct urs_session *session)
{
    if (session->input_ended || urs_session_is_lost(session) || session->state == URS_SESSION_AWAIT_REQUESTS)
        return false;
    if (session->state == URS_SESSION_OPEN || session->state == URS_SESSION_AWAIT_CLOSE)
        return session->held.block == NULL && urs_core_may_feed(session);
    if (session->state == URS_SESSION_AWAIT_DECISION)
        return session->held.block == NULL || urs_slice_bytes(&session->held) < URS_EARLY_BYTES_MAX;
    return true;
}

static void arm(struct urs_reactor *reactor, struct urs_session *session, bool once)
{
    URS_ASSERT(session->receive_state == URS_RECEIVE_IDLE && session->fd >= 0);
    if (reactor->io->operations->receive(reactor->io, session->slot, session->generation, session->fd, once) == 0)
        urs_session_set_receive(session, URS_RECEIVE_ARMED);
    else
        urs_work_retry_receive(reactor, session);
}

void urs_intake_stop(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->receive_state != URS_RECEIVE_ARMED)
        return;
    /* If the backend has no room for the cancel, the receive stays armed. Its next data is held, and the receive is
     * cancelled again then. */
    if (reactor->io->operations->receive_stop(reactor->io, session->slot, session->generation, session->fd) == 0)
        urs_session_set_receive(session, URS_RECEIVE_CANCELLING);
}

/* Puts a session without an armed receive at the end of its queue. */
static void enqueue(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->receive_state == URS_RECEIVE_IDLE);
    struct urs_queue *queue = session->heavy ? &reactor->heavy : &reactor->lively;
    urs_session_set_receive(session, URS_RECEIVE_AWAITS_BUFFER);
    urs_session_join(session, URS_LIST_BUFFERS);
    session->next_slot = 0;
    if (queue->count == 0)
        queue->first = session->slot + 1;
    else
        urs_core_session(reactor, queue->last - 1)->next_slot = session->slot + 1;
    queue->last = session->slot + 1;
    queue->count++;
}

void urs_intake_receive(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_FREE)
        return;
    if (!wants_input(session))
        urs_intake_stop(reactor, session);
    else if (session->receive_state != URS_RECEIVE_IDLE)
        return;
    else if (URS_UNLIKELY(urs_intake_is_short(reactor)))
        enqueue(reactor, session);
    else
        arm(reactor, session, session->is_unix);
}

/* Arms a receive of one completion if the session wants input and none is armed. Returns whether it armed one. */
static bool receive_once(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->receive_state != URS_RECEIVE_IDLE || !wants_input(session))
        return false;
    arm(reactor, session, true);
    return true;
}

/* Arms the first `room` sessions of a queue that still want input. Returns how many sessions it armed. */
static uint32_t serve(struct urs_reactor *reactor, struct urs_queue *queue, uint32_t room)
{
    uint32_t armed = 0;
    while (armed < room && queue->count > 0) {
        struct urs_session *session = urs_core_session(reactor, queue->first - 1);
        URS_ASSERT(session->receive_state == URS_RECEIVE_AWAITS_BUFFER);
        queue->first = session->next_slot;
        queue->count--;
        urs_session_set_receive(session, URS_RECEIVE_IDLE);
        urs_session_leave(session, URS_LIST_BUFFERS);
        armed += receive_once(reactor, session);
    }
    return armed;
}

void urs_intake_serve(struct urs_reactor *reactor)
{
    if (URS_LIKELY(urs_intake_waiting(reactor) == 0))
        return;
    uint32_t room = urs_intake_free_buffers(reactor);
    if (room == 0)
        return;
    /* No session starves: heavy sessions get their part however many lively ones wait. The part is small, which keeps
     * the turn short. A session that was silent, with its receive armed, then still finds a buffer at once. */
    uint32_t heavy_min = (uint32_t)urs_min(reactor->heavy.count, urs_max(1, room / HEAVY_PART_MIN));
    uint32_t heavy_max = (uint32_t)urs_max(1, room / HEAVY_PART_MAX);
    uint32_t armed = serve(reactor, &reactor->lively, room - heavy_min);
    serve(reactor, &reactor->heavy, (uint32_t)urs_min(room - armed, heavy_max));
}

static void look(struct urs_reactor *reactor, struct pollfd *sockets, const uint32_t *slots, nfds_t count)
{
    int found = poll(sockets, count, 0);
    for (nfds_t index = 0; index < count && found > 0; index++) {
        if ((sockets[index].revents & (POLLERR | POLLHUP | POLLNVAL)) == 0)
            continue;
        struct urs_session *session = urs_core_session(reactor, slots[index]);
        urs_intake_stop(reactor, session);
        if (session->receive_state == URS_RECEIVE_ARMED)
            session->unsure = reactor->resets_again = true;  /* no room for the cancel: no data would bring another */
    }
}

void urs_intake_find_resets(struct urs_reactor *reactor)
{
    struct pollfd sockets[LOOKS_PER_CALL];
    uint32_t slots[LOOKS_PER_CALL];
    nfds_t count = 0;
    if (URS_LIKELY(reactor->resets_due_ms == 0 || reactor->now_ms < reactor->resets_due_ms))
        return;
    URS_ASSERT(reactor->resets_slot <= reactor->sessions.slots);
    uint32_t slot = reactor->resets_slot;
    uint32_t end = (uint32_t)urs_min((size_t)slot + LOOKS_PER_TURN, reactor->sessions.slots);
    for (; slot < end; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        bool unsure = session->unsure && urs_session_is_receiving(session) && session->fd >= 0;
        session->unsure = false;
        if (!unsure)
            continue;
        slots[count] = slot;
        sockets[count++] = (struct pollfd){.fd = session->fd};
        if (count == LOOKS_PER_CALL) {
            look(reactor, sockets, slots, count);
            count = 0;
        }
    }
    look(reactor, sockets, slots, count);
    reactor->resets_due_ms = reactor->now_ms + 1;
    reactor->resets_slot = end;
    if (end < reactor->sessions.slots)
        return;
    reactor->resets_due_ms = reactor->resets_again ? reactor->now_ms + URS_RESETS_MS : 0;
    reactor->resets_slot = 0;
    reactor->resets_again = false;
}
