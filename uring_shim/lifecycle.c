/* How sessions begin and end, once they are admitted: the opening request's head, the close handshake, deadlines and
 * pings, the memory budget. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault.h"
#include "head.h"

enum { BUDGET_SCAN_MAX = 64, LATE_EVENTS = 3 };

/* ---- beginning ----------------------------------------------------------------------------------------------- */

static int grow_list(struct urs_slots *list, size_t room)
{
    uint32_t *slots = realloc(list->slots, room * sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    list->slots = slots;
    return 0;
}

/* Sees to it that every list has room for every slot, so that putting a session on one cannot fail. */
static int reserve_slots(struct urs_reactor *reactor, uint32_t slots)
{
    if (slots <= reactor->slots_room)
        return 0;
    size_t room = urs_max(256, 2 * (size_t)reactor->slots_room);
    /* A session has at most one LOST for the end of its stream, one for an error after it, and one DRAIN. */
    struct urs_event *late = realloc(reactor->late, LATE_EVENTS * room * sizeof *late);
    if (late == NULL)
        return -ENOMEM;
    reactor->late = late;
    /* dirty: a session may stand there twice while the list is worked through. */
    if (grow_list(&reactor->dirty, 2 * room) != 0 || grow_list(&reactor->ready, 2 * room) != 0
        || grow_list(&reactor->delayed, room) != 0 || grow_list(&reactor->dead, room) != 0)
        return -ENOMEM;
    reactor->late_room = (uint32_t)(LATE_EVENTS * room);
    reactor->slots_room = (uint32_t)room;
    return 0;
}

struct urs_session *urs_life_new(struct urs_reactor *reactor, int fd, bool local)
{
    if (reserve_slots(reactor, reactor->sessions.slots + 1) != 0)
        return NULL;
    struct urs_session *session = urs_session_new(&reactor->sessions, fd);
    if (session == NULL)
        return NULL;
    session->local = local;
    session->opened_ms = session->last_input_ms = (uint32_t)reactor->now_ms;
    if (urs_wheel_set(&reactor->wheel, session->slot, reactor->now_ms + URS_WHEEL_TICK_MS) != 0) {
        urs_session_free(&reactor->sessions, session);
        return NULL;
    }
    return session;
}

void urs_life_deadline(struct urs_reactor *reactor, struct urs_session *session, uint32_t in_ms)
{
    session->has_deadline = in_ms != 0;
    session->deadline_ms = (uint32_t)reactor->now_ms + in_ms;
    urs_life_schedule(reactor, session);
}

/* ---- the opening request ------------------------------------------------------------------------------------- */

void urs_life_head(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes)
{
    struct urs_item item = {.kind = URS_EVENT_UPGRADE};
    const struct urs_head_rules rules = {.bytes_max = reactor->options.header_bytes_max,
                                         .proxy_protocol = reactor->options.proxy_protocol};
    struct urs_block *held = NULL;
    size_t seen = 0;
    int error = 0;
    if (session->held != NULL) {
        seen = urs_block_bytes(session->held);
        error = urs_session_hold(session, &reactor->memory, data, bytes);
        held = session->held;
        data = urs_block_data(held);
        bytes = urs_block_bytes(held);
    }
    int64_t head = error != 0 ? error : urs_head_find(data, bytes, seen, &rules);
    if (head == 0) {
        if (held == NULL)
            error = urs_session_hold(session, &reactor->memory, data, bytes);
        if (error != 0)
            urs_life_lose(reactor, session, error);
        return;
    }
    session->held = NULL;
    urs_session_set_state(session, URS_SESSION_AWAIT_VERDICT);
    if (head > 0) {
        item.payload = data;
        item.bytes = (size_t)head;
        if (bytes > item.bytes)
            error = urs_session_hold(session, &reactor->memory, data + head, bytes - item.bytes);
    } else {
        item.error = (int32_t)head;
    }
    item.block = held;
    if (error != 0) {
        urs_block_drop(held);
        urs_life_lose(reactor, session, error);
        return;
    }
    urs_turn_event(reactor, session->slot, &item);
}

static void end_handshake(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_VERDICT)
        reactor->handshakes--;
}

void urs_life_open(struct urs_reactor *reactor, struct urs_session *session)
{
    end_handshake(reactor, session);
    urs_session_set_state(session, URS_SESSION_OPEN);
    session->has_deadline = false;
    session->opened_ms = session->last_input_ms = (uint32_t)reactor->now_ms;
    session->ping_due_ms = session->opened_ms + reactor->options.ping_interval_ms;
    urs_life_schedule(reactor, session);
    if (session->held != NULL)
        urs_turn_ready(reactor, session);
    urs_turn_receive(reactor, session);
}

/* ---- ending -------------------------------------------------------------------------------------------------- */

int urs_life_close(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const uint8_t *reason,
                   size_t bytes)
{
    int error = urs_outbound_close(&reactor->outbox, &session->outbound, code, reason, bytes);
    if (error != 0) {
        urs_life_lose(reactor, session, error);
        return error;
    }
    urs_session_set_state(session, URS_SESSION_AWAIT_CLOSE);
    urs_life_deadline(reactor, session, reactor->options.close_ms);
    urs_turn_dirty(reactor, session);
    urs_turn_receive(reactor, session);  /* paused or not: the peer's close frame is wanted */
    if (session->held != NULL)
        urs_turn_ready(reactor, session);
    return 0;
}

void urs_life_fail(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const char *reason)
{
    session->failed_code = (uint16_t)code;
    urs_life_close(reactor, session, code, (const uint8_t *)reason, strlen(reason));
}

void urs_life_finish(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state >= URS_SESSION_AWAIT_FLUSH)
        return;
    end_handshake(reactor, session);
    urs_session_set_state(session, URS_SESSION_AWAIT_FLUSH);
    urs_block_drop(session->held);
    session->held = NULL;
    urs_engine_clear(&session->engine);
    urs_life_deadline(reactor, session, reactor->options.close_ms);
    urs_turn_dirty(reactor, session);
    urs_turn_receive(reactor, session);
}

void urs_life_flushed(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state != URS_SESSION_AWAIT_FLUSH || session->outbound.first != 0 || session->backlog != NULL)
        return;
    /* The peer reads to our end of stream, we to its: closing with unread input would reset the connection, and
     * destroy what the peer has not read yet. The system call, for the opcode would start a worker thread. */
    if (session->input_ended || session->lost || urs_sys_shutdown(session->fd, SHUT_WR) != 0)
        urs_life_end(reactor, session);
    else
        urs_session_set_state(session, URS_SESSION_AWAIT_END);
}

void urs_life_lose(struct urs_reactor *reactor, struct urs_session *session, int error)
{
    if (session->lost)
        return;  /* the event that ends it is on its way */
    if (session->state == URS_SESSION_AWAIT_END && error == 0) {
        urs_life_end(reactor, session);  /* the end that was awaited */
        return;
    }
    if (error != 0) {
        session->lost = true;
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        urs_session_drop_memory(session);
    }
    if (session->told && session->state >= URS_SESSION_AWAIT_FLUSH) {
        if (session->lost)
            urs_turn_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_LOST, .error = error});
        return;
    }
    session->told = true;
    uint16_t code = session->failed_code != 0 ? session->failed_code : URS_CLOSE_ABNORMAL;
    urs_turn_event(reactor, session->slot,
                   &(struct urs_item){.kind = URS_EVENT_LOST, .error = error, .close_code = code});
}

void urs_life_end(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_AWAIT_REQUESTS || session->state == URS_SESSION_FREE)
        return;
    /* Closing the descriptor alone would complete no request, and tell the peer nothing while a forked child or a
     * duplicate keeps the socket. In AWAIT_END the peer has our end of stream already. */
    if (session->state != URS_SESSION_AWAIT_END || session->receiving || session->polling)
        (void)urs_sys_shutdown(session->fd, SHUT_RDWR);  /* fails where the peer is gone: nobody is left to be told */
    end_handshake(reactor, session);
    urs_session_set_state(session, URS_SESSION_AWAIT_REQUESTS);
    session->lost = true;
    urs_outbound_clear(&reactor->outbox, &session->outbound);
    urs_session_drop_memory(session);
    urs_life_deadline(reactor, session, reactor->options.close_ms);
    urs_life_try_free(reactor, session);
}

void urs_life_try_free(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->receiving || session->polling || session->sending || session->fd < 0)
        return;
    reactor->io->operations->forget(reactor->io, session->slot, session->fd);
    close(session->fd);
    session->fd = -1;
    urs_wheel_cancel(&reactor->wheel, session->slot);
    urs_admission_leave(reactor, session->peer_hash);
    urs_slots_push(&reactor->dead, session->slot);
}

/* ---- time ---------------------------------------------------------------------------------------------------- */

/* The milliseconds from now to a moment of the 32-bit clock; 0 if it has passed. */
static uint32_t until(const struct urs_reactor *reactor, uint32_t at_ms)
{
    int32_t left = (int32_t)(at_ms - (uint32_t)reactor->now_ms);
    return left > 0 ? (uint32_t)left : 0;
}

void urs_life_schedule(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_reactor_options *options = &reactor->options;
    uint32_t next = UINT32_MAX;
    if (session->has_deadline)
        next = until(reactor, session->deadline_ms);
    if (session->state == URS_SESSION_OPEN) {
        if (options->idle_ms != 0 && !session->paused)
            next = (uint32_t)urs_min(next, until(reactor, session->last_input_ms + options->idle_ms));
        if (options->session_ms != 0)
            next = (uint32_t)urs_min(next, until(reactor, session->opened_ms + options->session_ms));
        if (options->ping_interval_ms != 0)
            next = (uint32_t)urs_min(next, until(reactor, session->ping_due_ms));
        if (session->ping_sent_us != 0 && options->ping_timeout_ms != 0 && !session->paused) {
            uint32_t sent_ms = (uint32_t)(session->ping_sent_us / 1000);
            next = (uint32_t)urs_min(next, until(reactor, sent_ms + options->ping_timeout_ms));
        }
    }
    if (next == UINT32_MAX)
        urs_wheel_cancel(&reactor->wheel, session->slot);
    else
        urs_wheel_set(&reactor->wheel, session->slot, reactor->now_ms + next);
}

/* A peer is not silent for not being listened to: idleness counts from now, and no pong is missed. */
void urs_life_resumed(struct urs_reactor *reactor, struct urs_session *session)
{
    session->last_input_ms = (uint32_t)reactor->now_ms;
    session->ping_sent_us = 0;
    urs_life_schedule(reactor, session);
}

/* A ping carries the moment it was sent: its pong tells the round trip. */
static void send_ping(struct urs_reactor *reactor, struct urs_session *session)
{
    uint8_t payload[8];
    /* One at a time where its pong decides the session's fate. */
    if (session->ping_sent_us != 0 && reactor->options.ping_timeout_ms != 0)
        return;
    if (session->backlog_bytes > reactor->options.backlog_bytes_max + URS_CONTROL_RESERVE_BYTES)
        return;
    /* Else the first one is repeated: whichever a slow peer answers, its pong tells how long it took. */
    uint64_t sent_us = session->ping_sent_us != 0 ? session->ping_sent_us : reactor->now_us;
    memcpy(payload, &sent_us, sizeof payload);
    if (urs_outbound_frame(&reactor->outbox, &session->outbound, URS_OPCODE_PING, true, payload, sizeof payload) != 0)
        return;
    session->ping_sent_us = sent_us;
    reactor->stats.pings_sent++;
    urs_turn_dirty(reactor, session);
}

void urs_life_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item)
{
    uint64_t sent_us;
    reactor->stats.pongs_received++;
    if (item->bytes != sizeof sent_us || session->ping_sent_us == 0)
        return;
    memcpy(&sent_us, item->payload, sizeof sent_us);
    if (sent_us != session->ping_sent_us)
        return;
    session->latency_seconds = (float)(reactor->now_us - sent_us) / 1e6f;
    session->ping_sent_us = 0;
}

static void expire(struct urs_reactor *reactor, struct urs_session *session, const char *reason)
{
    reactor->stats.timeouts++;
    urs_life_fail(reactor, session, URS_CLOSE_GOING_AWAY, reason);
}

static void open_timer(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_reactor_options *options = &reactor->options;
    uint32_t ping_sent_ms = (uint32_t)(session->ping_sent_us / 1000);
    if (session->ping_sent_us != 0 && options->ping_timeout_ms != 0 && !session->paused
        && until(reactor, ping_sent_ms + options->ping_timeout_ms) == 0) {
        /* Anything that came since the ping shows that the peer lives, only busy. */
        if ((int32_t)(session->last_input_ms - ping_sent_ms) <= 0) {
            reactor->stats.timeouts++;
            urs_life_lose(reactor, session, -ETIMEDOUT);
            return;
        }
        session->ping_sent_us = 0;
    }
    if (options->session_ms != 0 && until(reactor, session->opened_ms + options->session_ms) == 0) {
        expire(reactor, session, "session time is over");
        return;
    }
    if (options->idle_ms != 0 && !session->paused && until(reactor, session->last_input_ms + options->idle_ms) == 0) {
        expire(reactor, session, "idle");
        return;
    }
    if (options->ping_interval_ms != 0 && until(reactor, session->ping_due_ms) == 0) {
        send_ping(reactor, session);
        session->ping_due_ms = (uint32_t)reactor->now_ms + options->ping_interval_ms;
    }
    urs_life_schedule(reactor, session);
}

static void deadline_passed(struct urs_reactor *reactor, struct urs_session *session)
{
    static const char response[] = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\n"
                                   "Content-Length: 16\r\n\r\nrequest timeout\n";
    session->has_deadline = false;
    switch ((enum urs_session_state)session->state) {
    case URS_SESSION_AWAIT_HEAD:
    case URS_SESSION_AWAIT_VERDICT:
        reactor->stats.refused[URS_REFUSED_TIMEOUT]++;
        urs_outbound_bytes(&reactor->outbox, &session->outbound, (const uint8_t *)response, sizeof response - 1);
        urs_life_finish(reactor, session);
        break;
    case URS_SESSION_AWAIT_CLOSE:
    case URS_SESSION_AWAIT_FLUSH:
        reactor->stats.timeouts++;
        urs_life_lose(reactor, session, -ETIMEDOUT);
        break;
    case URS_SESSION_AWAIT_END:
        urs_life_end(reactor, session);
        break;
    case URS_SESSION_AWAIT_REQUESTS:
        /* shutdown did not bring the last completion: ask for it by name. */
        if (session->receiving)
            reactor->io->operations->receive_stop(reactor->io, session->slot, session->generation, session->fd);
        urs_life_deadline(reactor, session, reactor->options.close_ms);
        break;
    case URS_SESSION_OPEN:
    case URS_SESSION_FREE:
    default:
        break;
    }
}

void urs_life_timers(struct urs_reactor *reactor)
{
    uint32_t slot;
    while ((slot = urs_wheel_take(&reactor->wheel, reactor->now_ms)) != URS_WHEEL_NONE) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->has_deadline && until(reactor, session->deadline_ms) == 0)
            deadline_passed(reactor, session);
        else if (session->state == URS_SESSION_OPEN && !session->lost)
            open_timer(reactor, session);
        else
            urs_life_schedule(reactor, session);
    }
}

/* ---- the memory budget ---------------------------------------------------------------------------------------- */

static struct urs_session *greediest(struct urs_reactor *reactor)
{
    struct urs_session *most = NULL;
    size_t most_bytes = 0;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        size_t bytes = session->state == URS_SESSION_FREE ? 0 : urs_session_memory_bytes(session);
        if (bytes > most_bytes) {
            most_bytes = bytes;
            most = session;
        }
    }
    return most;
}

void urs_life_budget(struct urs_reactor *reactor)
{
    static const char reason[] = "server out of memory";
    size_t max = reactor->memory.bytes_max;
    if (max == 0 || reactor->memory.bytes_used < max - max / 8)
        return;
    for (int count = 0; count < BUDGET_SCAN_MAX && reactor->memory.bytes_used > max - max / 4; count++) {
        struct urs_session *session = greediest(reactor);
        if (session == NULL)
            return;
        reactor->stats.evictions++;
        if (session->backlog != NULL || session->state != URS_SESSION_OPEN) {
            /* Bytes would be missing from its stream: it cannot be closed in good order. */
            urs_life_lose(reactor, session, URS_ERROR_MEMORY_BUDGET);
            continue;
        }
        urs_session_drop_memory(session);
        urs_outbound_close(&reactor->outbox, &session->outbound, URS_CLOSE_MESSAGE_TOO_BIG, (const uint8_t *)reason,
                           sizeof reason - 1);
        session->told = true;
        urs_turn_event(reactor, session->slot,
                       &(struct urs_item){.kind = URS_EVENT_LOST, .error = URS_ERROR_MEMORY_BUDGET,
                                          .close_code = URS_CLOSE_MESSAGE_TOO_BIG});
        urs_life_finish(reactor, session);
    }
}
