/* The clocks of a session: when each starts, and which progress extends it. upkeep.c judges them.
 * docs/deadlines.md has the table of them.
 *
 * Three rules hold for every clock. A clock that waits for an answer starts when the question has been sent, not while
 * other bytes are in front of it. Input that has arrived is read before a peer is judged. A clock that waits for input
 * stops while the server itself does not read. */
#include "deadline.h"

#include "work.h"

static const uint32_t SPREAD = 2654435769u;  /* 2^32 / golden ratio: its multiples are far from each other */

uint32_t urs_deadline_until(const struct urs_reactor *reactor, uint32_t at_ms)
{
    int32_t left = (int32_t)(at_ms - (uint32_t)reactor->now_ms);
    return left > 0 ? (uint32_t)left : 0;
}

bool urs_deadline_is_ending(const struct urs_session *session)
{
    return session->state == URS_SESSION_AWAIT_CLOSE || session->state == URS_SESSION_AWAIT_FLUSH
        || session->state == URS_SESSION_AWAIT_END;
}

uint32_t urs_deadline_period_ms(const struct urs_reactor *reactor, const struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    switch ((enum urs_session_state)session->state) {
    case URS_SESSION_AWAIT_HEAD:
    case URS_SESSION_AWAIT_DECISION:
        return rules->handshake_ms;
    case URS_SESSION_OPEN:
        return rules->ping_timeout_ms;
    default:
        return rules->close_ms;
    }
}

void urs_deadline_schedule(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    bool open = session->state == URS_SESSION_OPEN;
    uint32_t next = UINT32_MAX;
    if (session->has_deadline && !(open && urs_session_is_paused(session))) {
        next = urs_deadline_until(reactor, session->deadline_ms);
        if (session->question_queued)
            next = (uint32_t)urs_min(next, urs_deadline_period_ms(reactor, session) / URS_LOOKS_PER_PERIOD);
        if (session->reprieved && !open)
            next = 0;
    }
    if (open) {
        if (rules->idle_ms != 0 && !urs_session_is_paused(session))
            next = (uint32_t)urs_min(next, urs_deadline_until(reactor, session->last_input_ms + rules->idle_ms));
        if (rules->session_ms != 0)
            next = (uint32_t)urs_min(next, urs_deadline_until(reactor, session->opened_ms + rules->session_ms));
        if (rules->ping_interval_ms != 0)
            next = (uint32_t)urs_min(next, urs_deadline_until(reactor, session->ping_due_ms));
    }
    if (next == UINT32_MAX)
        urs_wheel_cancel(&reactor->wheel, session->slot);
    else
        urs_wheel_set(&reactor->wheel, session->slot, reactor->now_ms + next);
}

void urs_deadline_set(struct urs_reactor *reactor, struct urs_session *session, uint32_t in_ms)
{
    urs_work_clock(reactor);  /* the caller may be a handler that took a long time */
    session->has_deadline = in_ms != 0;
    session->question_unsent = session->question_queued = session->reprieved = false;
    session->deadline_ms = (uint32_t)reactor->now_ms + in_ms;
    urs_deadline_schedule(reactor, session);
}

bool urs_deadline_is_queued(const struct urs_session *session)
{
    return session->backlog.bytes > 0 || session->outbound.first != 0 || urs_io_unsent_bytes(session->fd) > 0;
}

void urs_deadline_set_question(struct urs_session *session, bool queued)
{
    URS_ASSERT(session->fd >= 0);
    session->acked_bytes = session->sent_bytes - (queued ? urs_io_unsent_bytes(session->fd) : 0);
    session->question_bytes = session->sent_bytes + (uint32_t)(session->backlog.bytes + session->outbound.bytes);
    session->question_queued = queued;
    session->question_unsent = true;
}

void urs_deadline_left(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->question_unsent && session->backlog.bytes == 0 && session->outbound.first == 0);
    session->question_unsent = false;
    session->deadline_ms = (uint32_t)reactor->now_ms + urs_deadline_period_ms(reactor, session);
}

void urs_deadline_left_in_part(struct urs_reactor *reactor, struct urs_session *session)
{
    if (urs_deadline_is_ending(session))
        session->deadline_ms = (uint32_t)reactor->now_ms + urs_deadline_period_ms(reactor, session);
}

void urs_deadline_set_ending(struct urs_reactor *reactor, struct urs_session *session, bool queued)
{
    URS_ASSERT(urs_deadline_is_ending(session));
    urs_deadline_set(reactor, session, urs_core_rules(reactor, session)->close_ms);
    urs_deadline_set_question(session, queued);
    urs_deadline_schedule(reactor, session);
}

void urs_deadline_ping_answered(struct urs_session *session)
{
    session->ping_sent_us = 0;
    session->has_deadline = session->question_unsent = session->question_queued = false;
}

void urs_deadline_open(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->state == URS_SESSION_OPEN && !urs_session_is_on(session, URS_LIST_SILENT));
    urs_work_clock(reactor);
    urs_deadline_ping_answered(session);
    session->reprieved = false;
    session->opened_ms = session->last_input_ms = (uint32_t)reactor->now_ms;
    /* The first ping is sent early, by a different time per slot, so that sessions opened together are not always
     * pinged together. */
    uint32_t interval_ms = urs_core_rules(reactor, session)->ping_interval_ms;
    uint32_t early_ms = (uint32_t)((uint64_t)(interval_ms / 2) * (session->slot * SPREAD) >> 32);
    session->ping_due_ms = session->opened_ms + interval_ms - early_ms;
    urs_deadline_schedule(reactor, session);
}

void urs_deadline_resumed(struct urs_reactor *reactor, struct urs_session *session)
{
    urs_work_clock(reactor);
    session->last_input_ms = (uint32_t)reactor->now_ms;
    if (session->state == URS_SESSION_OPEN)
        urs_deadline_ping_answered(session);
    urs_deadline_schedule(reactor, session);
}
