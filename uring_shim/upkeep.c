/* Judges the clocks of sessions: sends pings, and ends sessions whose peer is silent, idle or too slow. deadline.c sets
 * the clocks. */
#include "upkeep.h"

#include <errno.h>
#include <string.h>

#include "admission.h"
#include "deadline.h"
#include "flush.h"
#include "lifecycle.h"
#include "work.h"

enum { TIMERS_PER_TURN_MAX = 1024, STEP_BACK_BYTES_MAX = 1 << 26, PASSED_BYTES_MAX = 1 << 30 };

/* ---- pings --------------------------------------------------------------------------------------------------- */

/* The payload of a ping is the time when it was made: its pong tells the round-trip time. */
static void send_ping(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(urs_session_is_open(session));
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    uint8_t payload[8];
    bool judged = rules->ping_timeout_ms != 0;
    /* If a missing pong ends the session, only one ping may be outstanding. */
    if (session->ping_sent_us != 0 && judged)
        return;
    if (urs_gate_check(session, rules, URS_OUTPUT_CONTROL, sizeof payload) != URS_GATE_OPEN)
        return;
    /* Otherwise the first ping is repeated: a slow peer may answer any of them, and the pong tells the full time. */
    uint64_t sent_us = session->ping_sent_us != 0 ? session->ping_sent_us : reactor->now_us;
    memcpy(payload, &sent_us, sizeof payload);
    bool queued = judged && urs_deadline_is_queued(session);
    if (urs_outbound_frame(&reactor->outbox, &session->outbound, URS_OPCODE_PING, true, payload, sizeof payload) != 0)
        return;
    session->ping_sent_us = sent_us;
    if (judged) {
        session->has_deadline = true;
        session->deadline_ms = (uint32_t)reactor->now_ms + rules->ping_timeout_ms;
        urs_deadline_set_question(session, queued);
    }
    reactor->stats.pings_sent++;
    urs_work_dirty(reactor, session);
}

void urs_upkeep_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item)
{
    uint64_t sent_us;
    reactor->stats.pongs_received++;
    if (session->state != URS_SESSION_OPEN || item->bytes != sizeof sent_us || session->ping_sent_us == 0)
        return;
    memcpy(&sent_us, item->payload, sizeof sent_us);
    if (sent_us != session->ping_sent_us)
        return;
    session->latency_seconds = (float)(reactor->now_us - sent_us) / 1e6f;
    urs_deadline_ping_answered(session);
}

/* ---- judging ------------------------------------------------------------------------------------------------- */

/* Checks how far the peer has come. Returns the number of bytes that it has acknowledged since the last check. */
static uint32_t look(struct urs_session *session)
{
    uint32_t acked = session->sent_bytes - urs_io_unsent_bytes(session->fd);
    uint32_t taken = acked - session->acked_bytes;
    session->acked_bytes = acked;
    /* A backlog of 2 GiB, and the bytes in the socket, may be in front of the question. So positions up to 3 GiB ahead
     * count as not reached, and only the remaining 1 GiB as passed. */
    if (acked - session->question_bytes < PASSED_BYTES_MAX)
        session->question_queued = false;
    /* Gigabytes may have left since the last look. If the position moves back, it does so by little: a socket counts
     * the end of the stream, or its own overhead, as unsent bytes too. */
    return taken < UINT32_MAX - STEP_BACK_BYTES_MAX ? taken : 0;
}

/* Tells which input has arrived that the engine has not seen although it may take it. */
static enum urs_io_input unseen_input(const struct urs_session *session)
{
    bool engine = session->state == URS_SESSION_OPEN || session->state == URS_SESSION_AWAIT_CLOSE;
    if (engine && !urs_core_may_feed(session))
        return URS_INPUT_NONE;
    if (session->unread || (engine && session->held.block != NULL))
        return URS_INPUT_WAITS;
    return session->input_ended ? URS_INPUT_NONE : urs_io_input_waiting(session->fd);
}

/* Returns true if input must be read before the session is judged. */
static bool input_waits(struct urs_session *session)
{
    enum urs_io_input input = unseen_input(session);
    bool again = session->reprieved;
    if (input == URS_INPUT_ENDS)
        session->reprieved = true;  /* only once: an end that no receive reports would keep the session for ever */
    return input == URS_INPUT_WAITS || (input == URS_INPUT_ENDS && !again);
}

static void expire(struct urs_reactor *reactor, struct urs_session *session, enum urs_failure failure)
{
    reactor->stats.timeouts++;
    urs_life_fail(reactor, session, failure);
}

/* Returns true if the session has ended because a pong, or any input at all, was missing. */
static bool judge_silence(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    uint32_t now_ms = (uint32_t)reactor->now_ms;
    bool pong_due = session->has_deadline && urs_deadline_until(reactor, session->deadline_ms) == 0;
    bool idle_due = rules->idle_ms != 0 && urs_deadline_until(reactor, session->last_input_ms + rules->idle_ms) == 0;
    bool behind = session->question_queued || session->backlog.bytes > 0;
    if (session->question_queued || (behind && (pong_due || idle_due))) {
        /* A peer that takes the bytes in front of the ping is alive; the clock of the ping starts once the ping has
         * been sent. */
        if (look(session) > 0) {
            session->deadline_ms = now_ms + rules->ping_timeout_ms;
            session->taken = true;
            pong_due = false;
        }
    }
    if (idle_due && session->taken) {
        session->last_input_ms = now_ms;
        session->taken = idle_due = false;
    }
    if ((pong_due || idle_due) && input_waits(session)) {
        session->last_input_ms = now_ms;
        idle_due = false;
    }
    if (pong_due) {
        uint32_t ping_ms = (uint32_t)(session->ping_sent_us / 1000);
        /* Any input since the ping shows that the peer is alive, and only busy. */
        if ((int32_t)(session->last_input_ms - ping_ms) <= 0) {
            reactor->stats.timeouts++;
            urs_life_lose(reactor, session, -ETIMEDOUT);
            return true;
        }
        urs_deadline_ping_answered(session);
    }
    if (idle_due)
        expire(reactor, session, URS_FAILURE_IDLE);
    return idle_due;
}

static void judge_open(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    if (!urs_session_is_paused(session) && judge_silence(reactor, session))
        return;
    if (rules->session_ms != 0 && urs_deadline_until(reactor, session->opened_ms + rules->session_ms) == 0) {
        expire(reactor, session, URS_FAILURE_AGE);
        return;
    }
    if (rules->ping_interval_ms != 0 && urs_deadline_until(reactor, session->ping_due_ms) == 0) {
        send_ping(reactor, session);
        /* Keeps the rhythm of the session: after the server was blocked, the sessions are still pinged at different
         * times. */
        uint32_t late_ms = (uint32_t)reactor->now_ms - session->ping_due_ms;
        session->ping_due_ms += rules->ping_interval_ms * (1 + late_ms / rules->ping_interval_ms);
    }
    urs_deadline_schedule(reactor, session);
}

static void deadline_passed(struct urs_reactor *reactor, struct urs_session *session)
{
    session->has_deadline = session->reprieved = false;
    switch ((enum urs_session_state)session->state) {
    case URS_SESSION_AWAIT_HEAD:
    case URS_SESSION_AWAIT_DECISION:
        if (urs_session_is_on(session, URS_LIST_SILENT)) {
            reactor->stats.refused[URS_REFUSED_TIMEOUT]++;
            urs_life_end(reactor, session);  /* the peer has asked for nothing, so it gets no answer */
        } else {
            urs_admission_refuse(reactor, session, URS_REFUSED_TIMEOUT);
        }
        break;
    case URS_SESSION_AWAIT_CLOSE:
    case URS_SESSION_AWAIT_FLUSH:
        reactor->stats.timeouts++;
        urs_life_lose(reactor, session, -ETIMEDOUT);
        break;
    case URS_SESSION_AWAIT_END:
        session->reset = session->question_queued;
        urs_life_end(reactor, session);
        break;
    case URS_SESSION_AWAIT_REQUESTS:
        /* shutdown did not bring the last completion: cancel the receive. */
        if (urs_session_is_receiving(session))
            reactor->io->operations->receive_stop(reactor->io, session->slot, session->generation, session->fd);
        urs_deadline_set(reactor, session, urs_core_rules(reactor, session)->close_ms);
        break;
    case URS_SESSION_OPEN:
    case URS_SESSION_FREE:
    default:
        break;
    }
}

/* Judges the deadline of every state except OPEN. */
static void judge_state(struct urs_reactor *reactor, struct urs_session *session)
{
    uint32_t period = urs_deadline_period_ms(reactor, session);
    if (urs_deadline_is_ending(session) && session->question_queued) {
        /* A byte per millisecond is enough. A peer that takes less would hold our memory at almost no cost. */
        bool enough = look(session) >= urs_max(period / URS_LOOKS_PER_PERIOD, 1);
        if (enough || !session->question_queued)
            session->deadline_ms = (uint32_t)reactor->now_ms + period;
    }
    bool passed = urs_deadline_until(reactor, session->deadline_ms) == 0;
    bool awaits_input = session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_CLOSE;
    if (awaits_input && (passed || session->reprieved)) {
        bool first = !session->reprieved;
        passed = !input_waits(session) || (passed && !first && session->receive_state != URS_RECEIVE_AWAITS_BUFFER);
        /* Read the input first. This extends the deadline only once, unless receive buffers are short: otherwise a peer
         * could extend it for ever. */
        if (!passed && first) {
            session->reprieved = true;
            session->deadline_ms = (uint32_t)reactor->now_ms + period;
        }
    }
    if (passed)
        deadline_passed(reactor, session);
    else
        urs_deadline_schedule(reactor, session);
}

/* Sets or clears `unread` for every session whose input is among the collected completions. */
static void mark_unread(struct urs_reactor *reactor, bool unread)
{
    for (uint32_t index = reactor->completion_next; index < reactor->completion_count; index++) {
        const struct urs_completion *completion = &reactor->completions[index];
        if (completion->kind == URS_IO_RECEIVE && completion->result >= 0)
            urs_core_session(reactor, completion->slot)->unread = unread;
    }
}

void urs_upkeep_run(struct urs_reactor *reactor)
{
    if (urs_wheel_next_ms(&reactor->wheel, reactor->now_ms) != 0)
        return;
    /* Input that the backend has received already no longer waits in the socket, so input_waits would not find it
     * there. */
    urs_flush_collect(reactor);
    mark_unread(reactor, true);
    uint32_t slot;
    for (uint32_t count = 0; count < TIMERS_PER_TURN_MAX; count++) {
        if ((slot = urs_wheel_take(&reactor->wheel, reactor->now_ms)) == URS_WHEEL_NONE)
            break;
        struct urs_session *session = urs_core_session(reactor, slot);
        if (urs_session_is_open(session))
            judge_open(reactor, session);
        else if (session->state != URS_SESSION_OPEN && session->has_deadline)
            judge_state(reactor, session);
    }
    mark_unread(reactor, false);
}

uint32_t urs_upkeep_unread(struct urs_reactor *reactor)
{
    uint32_t count = 0;
    urs_flush_collect(reactor);
    mark_unread(reactor, true);
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        const struct urs_session *session = urs_core_session(reactor, slot);
        count += session->state == URS_SESSION_AWAIT_CLOSE && !session->question_unsent
            && unseen_input(session) != URS_INPUT_NONE;
    }
    mark_unread(reactor, false);
    return count;
}
