/* How sessions begin once they are accepted, and every step of their end. */
#define _GNU_SOURCE
#include "lifecycle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "deadline.h"
#include "fault.h"
#include "intake.h"
#include "peers.h"
#include "run.h"
#include "work.h"

enum { LATE_EVENTS = 4 };

/* ---- beginning ----------------------------------------------------------------------------------------------- */

static int grow_list(struct urs_slots *list, size_t room)
{
    uint32_t *slots = realloc(list->slots, room * sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    list->slots = slots;
    return 0;
}

/* Ensures that every list has room for every slot, so that adding a session to a list cannot fail. */
static int reserve_slots(struct urs_reactor *reactor, uint32_t slots)
{
    if (slots <= reactor->slots_room)
        return 0;
    size_t room = urs_max(256, 2 * (size_t)reactor->slots_room);
    /* Per session at most four late events: a LOST for the end of its stream, a LOST for a later error, a DROP,
     * and either a DRAIN or, if it never opened, an ABANDONED. */
    struct urs_event *late = realloc(reactor->late, LATE_EVENTS * room * sizeof *late);
    if (late == NULL)
        return -ENOMEM;
    reactor->late = late;
    /* dirty and feed_list: a slot may be on the list twice while the list is processed. */
    if (grow_list(&reactor->fanout, room) != 0 || grow_list(&reactor->dirty, 2 * room) != 0 || grow_list(&reactor->feed_list, 2 * room) != 0
        || grow_list(&reactor->retries, room) != 0 || grow_list(&reactor->dead, room) != 0)
        return -ENOMEM;
    reactor->late_room = (uint32_t)(LATE_EVENTS * room);
    reactor->slots_room = (uint32_t)room;
    return 0;
}

struct urs_session *urs_life_new(struct urs_reactor *reactor, int fd, bool is_unix, uint8_t rules)
{
    URS_ASSERT(rules < reactor->rules.count);
    if (reserve_slots(reactor, reactor->sessions.slots + 1) != 0)
        return NULL;
    struct urs_session *session = urs_session_new(&reactor->sessions, fd);
    if (session == NULL)
        return NULL;
    URS_ASSERT(session->slot < reactor->slots_room);
    session->is_unix = is_unix;
    session->rules = rules;
    session->opened_ms = session->last_input_ms = (uint32_t)reactor->now_ms;
    if (urs_wheel_set(&reactor->wheel, session->slot, reactor->now_ms + URS_WHEEL_TICK_MS) != 0) {
        urs_session_free(&reactor->sessions, session);
        return NULL;
    }
    return session;
}

static void end_handshake(struct urs_reactor *reactor, struct urs_session *session)
{
    urs_peers_spoke(reactor, session);
    if (session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_DECISION) {
        URS_ASSERT(reactor->handshakes > 0);
        reactor->handshakes--;
        if (session->listener != URS_NO_LISTENER) {
            URS_ASSERT(reactor->listeners[session->listener].requests > 0);
            reactor->listeners[session->listener].requests--;
        }
    }
}

void urs_life_open(struct urs_reactor *reactor, struct urs_session *session)
{
    end_handshake(reactor, session);
    urs_session_set_state(session, URS_SESSION_OPEN);
    urs_deadline_open(reactor, session);
    if (session->held.block != NULL)
        urs_work_queue_feed(reactor, session);
    urs_intake_receive(reactor, session);
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

void urs_life_stop_input(struct urs_reactor *reactor, struct urs_session *session, enum urs_input_stop reason)
{
    if ((session->input_stopped_by & reason) != 0)
        return;
    session->input_stopped_by = (uint8_t)(session->input_stopped_by | reason);
    urs_intake_receive(reactor, session);  /* this stops the armed receive */
}

void urs_life_resume_input(struct urs_reactor *reactor, struct urs_session *session, enum urs_input_stop reason)
{
    if ((session->input_stopped_by & reason) == 0)
        return;
    session->input_stopped_by = (uint8_t)(session->input_stopped_by & ~(unsigned)reason);
    urs_deadline_resumed(reactor, session);
    if (session->held.block != NULL)
        urs_work_queue_feed(reactor, session);
    urs_intake_receive(reactor, session);
}

/* ---- ending -------------------------------------------------------------------------------------------------- */

/* A session that is not open any more is a member of no topic. Its slot may then be used again at any time. */
static void leave_topics(struct urs_reactor *reactor, struct urs_session *session)
{
    urs_run_seal(reactor);
    if (session->memberships != NULL)
        urs_topics_leave(&reactor->topics, &reactor->sessions, session);
}

int urs_life_close(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const uint8_t *reason,
                   size_t bytes)
{
    URS_ASSERT(session->state == URS_SESSION_OPEN && session->fd >= 0);  /* so the gate is open for a close frame */
    leave_topics(reactor, session);
    bool queued = urs_deadline_is_queued(session);
    int error = urs_outbound_close(&reactor->outbox, &session->outbound, code, reason, bytes);
    if (error != 0) {
        urs_life_lose(reactor, session, error);
        return error;
    }
    urs_session_set_state(session, URS_SESSION_AWAIT_CLOSE);
    urs_deadline_set_ending(reactor, session, queued);
    urs_work_dirty(reactor, session);
    urs_intake_receive(reactor, session);  /* even if Python paused reading: the peer's close frame must be read */
    if (session->held.block != NULL)
        urs_work_queue_feed(reactor, session);
    return 0;
}

void urs_life_fail(struct urs_reactor *reactor, struct urs_session *session, enum urs_failure failure)
{
    URS_ASSERT(failure != URS_FAILURE_NONE && session->failure == URS_FAILURE_NONE);
    const struct urs_close frame = urs_failure_close(failure);
    session->failure = (uint8_t)failure;
    urs_life_close(reactor, session, frame.code, (const uint8_t *)frame.reason, strlen(frame.reason));
}

void urs_life_finish(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state >= URS_SESSION_AWAIT_FLUSH)
        return;
    end_handshake(reactor, session);
    leave_topics(reactor, session);
    urs_session_set_state(session, URS_SESSION_AWAIT_FLUSH);
    urs_slice_drop(&session->held);
    urs_engine_clear(&session->engine);
    urs_deadline_set_ending(reactor, session, urs_deadline_is_queued(session));
    urs_work_dirty(reactor, session);
    urs_intake_receive(reactor, session);
}

static void await_end(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->backlog.bytes == 0 && session->outbound.first == 0 && !session->input_ended);
    urs_session_set_state(session, URS_SESSION_AWAIT_END);
    urs_deadline_set_ending(reactor, session, urs_deadline_is_queued(session));
}

void urs_life_flushed(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->outbound.first != 0 || session->backlog.bytes > 0)
        return;
    if (URS_UNLIKELY(session->question_unsent))
        urs_deadline_left(reactor, session);
    if (session->state != URS_SESSION_AWAIT_FLUSH)
        return;
    /* Send our end of stream, then read to the peer's: close() with unread input sends a reset, which destroys data
     * that the peer has not read yet. This uses shutdown(2), because IORING_OP_SHUTDOWN runs on a worker thread. */
    if (session->input_ended || urs_session_is_lost(session) || urs_sys_shutdown(session->fd, SHUT_WR) != 0)
        urs_life_end(reactor, session);
    else
        await_end(reactor, session);
}

void urs_life_lose(struct urs_reactor *reactor, struct urs_session *session, int error)
{
    if (urs_session_is_lost(session))
        return;  /* the event that ends the session is queued already */
    URS_ASSERT(session->state != URS_SESSION_FREE && session->state != URS_SESSION_AWAIT_REQUESTS);
    if (session->state == URS_SESSION_AWAIT_END && error == 0) {
        urs_life_end(reactor, session);  /* this is the awaited end of the peer's stream */
        return;
    }
    if (session->socket_state == URS_SOCKET_END_REPORTED && error == 0)
        return;  /* the event is queued already */
    if (error != 0) {
        leave_topics(reactor, session);
        /* The system still delivers the bytes that the socket has taken, unless the peer does not take them. */
        session->reset = session->reset || session->backlog.bytes > 0 || session->outbound.first != 0
            || (error == -ETIMEDOUT && urs_io_unsent_bytes(session->fd) > 0);
        urs_backlog_discard(session, &reactor->outbox, &reactor->topics);
        urs_session_drop_memory(session);
    }
    urs_session_set_socket(session, error != 0 ? URS_SOCKET_LOST : URS_SOCKET_END_REPORTED);
    uint16_t code = urs_failure_close(session->failure).code;
    urs_work_event(reactor, session->slot,
                   &(struct urs_item){.kind = URS_EVENT_LOST, .error = error, .close_code = code});
}

void urs_life_end(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_AWAIT_REQUESTS || session->state == URS_SESSION_FREE)
        return;
    URS_ASSERT(session->fd >= 0 && !urs_session_is_sending(session));
    /* close() alone would complete no request. It would also tell the peer nothing while a forked child or a duplicate
     * descriptor keeps the socket open. In AWAIT_END the peer has our end of stream already. */
    if (session->state != URS_SESSION_AWAIT_END || urs_session_is_receiving(session)
        || session->send_state == URS_SEND_AWAITS_WRITABLE || session->reset)
        urs_io_disconnect(session->fd, session->reset);
    end_handshake(reactor, session);
    leave_topics(reactor, session);
    urs_session_set_state(session, URS_SESSION_AWAIT_REQUESTS);
    if (!urs_session_is_lost(session))
        urs_session_set_socket(session, URS_SOCKET_LOST);
    urs_backlog_discard(session, &reactor->outbox, &reactor->topics);
    urs_session_drop_memory(session);
    urs_deadline_set(reactor, session, urs_core_rules(reactor, session)->close_ms);
    urs_life_try_free(reactor, session);
}

void urs_life_try_free(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->state == URS_SESSION_AWAIT_REQUESTS && urs_session_is_lost(session));
    if (urs_session_is_receiving(session) || urs_session_is_sending(session)
        || session->send_state == URS_SEND_AWAITS_WRITABLE || session->fd < 0)
        return;
    reactor->io->operations->forget(reactor->io, session->slot, session->fd);
    close(session->fd);
    session->fd = -1;
    urs_wheel_cancel(&reactor->wheel, session->slot);
    urs_peers_leave(reactor, session->peer_hash);
    urs_slots_add(&reactor->dead, session, URS_LIST_DEAD);
}
