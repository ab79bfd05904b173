/* One turn of the reactor, from completions to events and from replies to sends. This file is the hot path. The steps:
 *
 *     apply      write the replies for the last events into outbound lists, in wire order
 *     flush      send once per session that has something to send; copy what its socket refuses to its backlog. Of the
 *                sessions that have only published messages to send, at most fanout_turn_max are served
 *     release    return every receive buffer of the turn to the pool
 *     wait       wait for completions
 *     dispatch   pass the bytes through the session's engine; items become events
 */
#define _GNU_SOURCE
#include "reactor.h"

#include <errno.h>
#include <string.h>

#include "admission.h"
#include "apply.h"
#include "budget.h"
#include "feed.h"
#include "flush.h"
#include "intake.h"
#include "invariants.h"
#include "lifecycle.h"
#include "run.h"
#include "upkeep.h"
#include "watch.h"
#include "work.h"
#include "zero_copy.h"

static void on_writable(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    struct urs_session *session = urs_core_session(reactor, completion->slot);
    if ((session->generation & 0xffffff) != completion->generation)
        return;
    /* If epoll could not be told to stop watching, it reports the socket again. */
    if (session->send_state != URS_SEND_AWAITS_WRITABLE)
        return;
    urs_session_set_send(session, URS_SEND_IDLE);
    if (session->state == URS_SESSION_AWAIT_REQUESTS)
        urs_life_try_free(reactor, session);
    else if (completion->result == -EAGAIN)
        urs_work_retry_send(reactor, session);
    else {
        session->taken = true;  /* the room is that of acknowledged bytes, also if the rest of the backlog fits into it */
        urs_work_dirty(reactor, session);
    }
}

static void dispatch(struct urs_reactor *reactor)
{
    URS_ASSERT(!reactor->dispatching);
    reactor->dispatching = true;
    while (reactor->completion_next < reactor->completion_count && reactor->event_count < URS_MESSAGES_MAX) {
        const struct urs_completion *completion = &reactor->completions[reactor->completion_next++];
        switch (completion->kind) {
        case URS_IO_RECEIVE:
            urs_feed_received(reactor, completion);
            break;
        case URS_IO_WRITABLE:
            on_writable(reactor, completion);
            break;
        case URS_IO_ACCEPT:
            urs_admission_accepted(reactor, completion);
            break;
        case URS_IO_WAKE:
            reactor->woken = true;
            break;
        case URS_IO_RELEASE:
            urs_zero_copy_release(reactor, completion);
            break;
        case URS_IO_WATCH:
            urs_watch_completed(reactor, completion);
            break;
        default:
            break;
        }
    }
    if (reactor->completion_next == reactor->completion_count)
        reactor->completion_next = reactor->completion_count = 0;
    reactor->dispatching = false;
}

static void rearm(struct urs_reactor *reactor)
{
    urs_watch_arm(reactor);
    urs_intake_serve(reactor);
    urs_intake_find_resets(reactor);
    if (reactor->retry_at_ms == 0 || reactor->now_ms < reactor->retry_at_ms)
        return;
    uint32_t count = reactor->retries.count;
    reactor->retries.count = 0;
    reactor->retry_at_ms = 0;
    for (uint32_t index = 0; index < count; index++) {
        struct urs_session *session = urs_core_session(reactor, reactor->retries.slots[index]);
        urs_session_leave(session, URS_LIST_RETRIES);
        if (session->receive_state == URS_RECEIVE_AWAITS_RETRY)
            urs_session_set_receive(session, URS_RECEIVE_IDLE);
        if (session->send_state == URS_SEND_AWAITS_RETRY)
            urs_session_set_send(session, URS_SEND_IDLE);
        urs_intake_receive(reactor, session);
        urs_work_dirty(reactor, session);
    }
    urs_admission_arm(reactor);
    urs_watch_retry(reactor);
}

/* Frees the sessions that have ended, except sessions that are still on a list or named by an undelivered event: the
 * list or the event would otherwise refer to the next session of the slot. */
static void free_dead(struct urs_reactor *reactor)
{
    uint32_t count = reactor->dead.count;
    reactor->dead.count = 0;
    for (uint32_t index = 0; index < count; index++) {
        struct urs_session *session = urs_core_session(reactor, reactor->dead.slots[index]);
        urs_session_leave(session, URS_LIST_DEAD);
        if (session->lists != 0 || session->late_events > 0)
            urs_slots_add(&reactor->dead, session, URS_LIST_DEAD);
        else
            urs_session_free(&reactor->sessions, session);
    }
    /* The last session is gone: Python may have nothing left to wait for. */
    if (count > 0 && reactor->sessions.in_use == 0)
        reactor->woken = true;
}

/* Ends a turn: afterwards nothing refers to its buffers, its events, or the sessions that ended in it. */
static int end_turn(struct urs_reactor *reactor, enum urs_flush_scope scope)
{
    urs_apply_events(reactor, reactor->event_count, URS_NO_EVENT);
    reactor->event_count = reactor->applied = reactor->visible = 0;
    *reactor->options.handled = 0;
    int error = urs_flush_sessions(reactor, scope);
    if (error != 0)
        return error;
    for (uint32_t index = 0; index < reactor->used_count; index++) {
        uint16_t buffer = reactor->used_buffers[index];
        if (reactor->lent == NULL || reactor->lent[buffer] == URS_LENT_NOT)
            reactor->io->operations->release(reactor->io, buffer);
        else
            reactor->lent[buffer] = URS_LENT_BEYOND;
    }
    reactor->used_count = 0;
    if (URS_UNLIKELY(urs_topics_need_sweep(&reactor->topics)) && reactor->outbox.publication_count == 0)
        urs_topics_sweep(&reactor->topics);
    free_dead(reactor);
    urs_invariants_check(reactor);
    return 0;
}

static void take_late(struct urs_reactor *reactor)
{
    if (reactor->late_count == 0)
        return;
    uint32_t count = (uint32_t)urs_min(reactor->late_count, URS_EVENTS_MAX - URS_MESSAGES_MAX - URS_COMPLETIONS);
    for (uint32_t index = 0; index < count; index++) {
        reactor->events[index] = reactor->late[index];
        reactor->targets[index] = URS_TARGET_OTHER;
        struct urs_session *session = urs_core_session(reactor, reactor->late[index].slot);
        URS_ASSERT(session->late_events > 0);
        session->late_events--;
        if (reactor->late[index].item.kind == URS_EVENT_DRAIN)
            session->drain_event_queued = false;
        if (reactor->late[index].item.kind == URS_EVENT_DROP)
            session->drop_event_queued = false;
    }
    reactor->event_count = reactor->visible = count;
    reactor->late_count -= count;
    memmove(reactor->late, reactor->late + count, reactor->late_count * sizeof *reactor->late);
}

/* Returns the shorter of a wait (negative: no limit) and the time until `at_ms`. */
static int64_t sooner(const struct urs_reactor *reactor, int64_t wait_ms, uint64_t at_ms)
{
    int64_t left_ms = at_ms > reactor->now_ms ? (int64_t)(at_ms - reactor->now_ms) : 0;
    return wait_ms < 0 || left_ms < wait_ms ? left_ms : wait_ms;
}

/* Returns the milliseconds until the reactor has something to do, even if no completion arrives; negative: no limit. */
static int64_t due_ms(const struct urs_reactor *reactor)
{
    bool work = reactor->event_count > 0 || reactor->woken || reactor->feed_list.count > 0 || reactor->dirty.count > 0
        || reactor->fanout.count > 0 || reactor->late_count > 0 || (urs_intake_waiting(reactor) > 0 && urs_intake_free_buffers(reactor) > 0);
    if (work)
        return 0;
    int64_t wait_ms = urs_wheel_next_ms(&reactor->wheel, reactor->now_ms);
    if (reactor->retry_at_ms != 0)
        wait_ms = sooner(reactor, wait_ms, reactor->retry_at_ms);
    if (reactor->resets_due_ms != 0)
        wait_ms = sooner(reactor, wait_ms, reactor->resets_due_ms);
    return wait_ms;
}

/* Waits for completions: for the first, or so long that several may gather. A part of the receive buffers stays free for
 * those that arrive while the turn begins. */
static int wait(struct urs_reactor *reactor, int64_t wait_ns)
{
    const struct urs_io_operations *io = reactor->io->operations;
    if (URS_LIKELY(reactor->options.batch_wait_us == 0) || wait_ns == 0)
        return io->wait(reactor->io, wait_ns);
    uint32_t free = urs_intake_free_buffers(reactor);
    uint32_t count = (uint32_t)urs_max(1, urs_min(reactor->options.batch_messages_max, free - free / 4));
    return io->wait_for(reactor->io, wait_ns, count, reactor->options.batch_wait_us);
}

/* Collects new completions, unless some of the previous ones are left. */
static int gather(struct urs_reactor *reactor, int64_t until_ms)
{
    const struct urs_io_operations *io = reactor->io->operations;
    if (reactor->completion_count == 0) {
        int64_t wait_ms = due_ms(reactor);
        if (until_ms >= 0)
            wait_ms = sooner(reactor, wait_ms, (uint64_t)until_ms);
        int64_t wait_ns = wait_ms < 0 ? -1 : wait_ms * 1000000;
        uint64_t start_us = reactor->now_us;
        do {
            /* Spinning is part of the wait: it delays neither a timer nor the caller's time-out. */
            int64_t spun_ns = (int64_t)(reactor->now_us - start_us) * 1000;
            int64_t left_ns = wait_ns < 0 ? wait_ns : wait_ns > spun_ns ? wait_ns - spun_ns : 0;
            bool spin = left_ns != 0 && spun_ns < (int64_t)reactor->options.busy_poll_us * 1000;
            int error = wait(reactor, spin ? 0 : left_ns);
            if (error != 0)
                return error;
            urs_work_clock(reactor);
            /* The rest of the room is for completions that arrive among those of sends. */
            reactor->completion_count = io->collect(reactor->io, reactor->completions,
                                                    reactor->completion_room - URS_COMPLETIONS_SPARE);
            if (!spin)
                break;
        } while (reactor->completion_count == 0);
    }
    return 0;
}

/* The second half of a turn. The first half has ended the last turn. */
static int begin_turn(struct urs_reactor *reactor, int64_t timeout_ms, bool echo)
{
    int64_t until_ms = timeout_ms < 0 ? -1 : (int64_t)reactor->now_ms + timeout_ms;
    URS_ASSERT(reactor->event_count == 0 && reactor->used_count == 0);
    urs_run_seal(reactor);
    reactor->echo = echo;
    for (;;) {
        if (URS_UNLIKELY(reactor->broken))
            return -EOVERFLOW;
        reactor->turn++;
        reactor->stats.turns++;
        take_late(reactor);
        rearm(reactor);
        urs_upkeep_run(reactor);
        urs_budget_enforce(reactor);
        urs_feed_held(reactor);
        int error = gather(reactor, until_ms);
        if (error != 0)
            return error == -EINTR && reactor->event_count > 0 ? (int)reactor->event_count : error;
        dispatch(reactor);
        urs_invariants_check(reactor);
        reactor->stats.events += reactor->event_count;
        if (reactor->visible > 0 || reactor->woken || (until_ms >= 0 && (int64_t)reactor->now_ms >= until_ms)) {
            reactor->woken = false;
            return (int)reactor->event_count;
        }
        error = end_turn(reactor, URS_FLUSH_SLICE);
        if (error != 0)
            return error;
    }
}

/* The first half of a turn. */
static int end_last_turn(struct urs_reactor *reactor, enum urs_flush_scope scope)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    if (URS_UNLIKELY(*reactor->options.handled < reactor->event_count))
        return (int)reactor->event_count;
    urs_work_clock(reactor);
    return end_turn(reactor, scope);
}

int urs_reactor_flush(struct urs_reactor *reactor) { return end_last_turn(reactor, URS_FLUSH_ALL); }

int urs_reactor_collect(struct urs_reactor *reactor, int64_t timeout_ms, bool echo)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    if (reactor->event_count > 0 || reactor->used_count > 0)
        return URS_ERROR_STATE;
    urs_work_clock(reactor);
    return begin_turn(reactor, timeout_ms, echo);
}

int urs_reactor_turn(struct urs_reactor *reactor, int64_t timeout_ms, bool echo)
{
    int left = end_last_turn(reactor, URS_FLUSH_SLICE);
    return left != 0 ? left : begin_turn(reactor, timeout_ms, echo);
}

int64_t urs_reactor_due_ms(struct urs_reactor *reactor)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    urs_work_clock(reactor);
    int64_t wait_ms = due_ms(reactor);
    return wait_ms < 0 ? INT64_MAX : wait_ms;
}

uint32_t urs_reactor_pending(const struct urs_reactor *reactor)
{
    return reactor->event_count - (uint32_t)urs_min(*reactor->options.handled, reactor->event_count);
}
