/* Admits connections: accepting, the limits on sessions, refusals, and the head of the opening request. */
#define _GNU_SOURCE
#include "admission.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "deadline.h"
#include "head.h"
#include "intake.h"
#include "lifecycle.h"
#include "peers.h"
#include "work.h"

enum { DATE_BYTES = 29 };

/* ---- connections that have not sent a byte -------------------------------------------------------------------- */

/* Removes from the list the sessions whose first bytes are among the completions still to be dispatched. Runs once per
 * turn. */
static void note_first_bytes(struct urs_reactor *reactor)
{
    if (reactor->silent_turn == reactor->turn)
        return;
    reactor->silent_turn = reactor->turn;
    for (uint32_t index = reactor->completion_next; index < reactor->completion_count; index++)
        if (reactor->completions[index].kind == URS_IO_RECEIVE && reactor->completions[index].result > 0)
            urs_peers_spoke(reactor, urs_core_session(reactor, reactor->completions[index].slot));
}

/* Ends the oldest connection that has been silent for silent_ms. Returns false if there is none. */
static bool make_room(struct urs_reactor *reactor)
{
    note_first_bytes(reactor);
    while (reactor->options.silent_ms != 0 && reactor->silent_first != 0) {
        struct urs_session *oldest = urs_core_session(reactor, reactor->silent_first - 1);
        if ((uint32_t)reactor->now_ms - oldest->opened_ms < reactor->options.silent_ms)
            return false;
        urs_peers_spoke(reactor, oldest);
        if (urs_io_input_waiting(oldest->fd) == URS_INPUT_WAITS)
            continue;  /* its request has arrived but has not been read yet */
        reactor->stats.refused[URS_REFUSED_HANDSHAKES]++;
        urs_life_end(reactor, oldest);
        return true;
    }
    return false;
}

/* ---- accepting ----------------------------------------------------------------------------------------------- */

/* Writes the present date in the form of RFC 9110 5.6.7. */
static void write_date(uint8_t date[static DATE_BYTES])
{
    static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    char text[96];
    struct timespec time;
    struct tm now;
    /* Not time(2): it may still return the previous second, and the Date of an answer would be earlier than its
     * request. */
    if (clock_gettime(CLOCK_REALTIME, &time) != 0 || gmtime_r(&time.tv_sec, &now) == NULL)
        return;
    int bytes = snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT", days[now.tm_wday], now.tm_mday,
                         months[now.tm_mon], now.tm_year + 1900, now.tm_hour, now.tm_min, now.tm_sec);
    if (bytes == DATE_BYTES)
        memcpy(date, text, DATE_BYTES);
}

/* Returns the answer to a connection that is refused, by the rules with that index. */
static const struct urs_answer *answer_to(struct urs_reactor *reactor, uint8_t rules, enum urs_refusal why)
{
    URS_ASSERT(rules < reactor->rules.count);
    const struct urs_answer *answer = &reactor->rules.sets[rules].refusals[why];
    URS_ASSERT(answer->date_at == 0 || answer->date_at + DATE_BYTES <= answer->bytes);
    if (answer->date_at != 0)
        write_date(answer->data + answer->date_at);
    return answer;
}

void urs_admission_refuse(struct urs_reactor *reactor, struct urs_session *session, enum urs_refusal why)
{
    const struct urs_answer *answer = answer_to(reactor, session->rules, why);
    URS_ASSERT(session->state == URS_SESSION_AWAIT_HEAD || session->state == URS_SESSION_AWAIT_DECISION);
    reactor->stats.refused[why]++;
    if (session->state == URS_SESSION_AWAIT_DECISION)
        urs_work_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_ABANDONED});
    int error = 0;
    if (answer->bytes > 0)
        error = urs_outbound_bytes(&reactor->outbox, &session->outbound, answer->data, answer->bytes);
    if (error != 0)
        urs_life_lose(reactor, session, error);
    else
        urs_life_finish(reactor, session);
}

/* Refuses a connection for which no session was created. */
static void refuse(struct urs_reactor *reactor, int fd, uint8_t rules, enum urs_refusal why)
{
    const struct urs_answer *answer = answer_to(reactor, rules, why);
    reactor->stats.refused[why]++;
    /* Best effort: nothing is read, and the server does not wait until the answer arrives. */
    (void)!send(fd, answer->data, answer->bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    close(fd);
}

static void admit(struct urs_reactor *reactor, int fd, const struct urs_listener *listener)
{
    const struct urs_reactor_options *options = &reactor->options;
    reactor->stats.accepted++;
    if (reactor->draining || listener->state != URS_LISTENER_OPEN) {
        refuse(reactor, fd, listener->rules, URS_REFUSED_DRAINING);
        return;
    }
    if (options->sessions_max != 0 && reactor->sessions.in_use >= options->sessions_max) {
        refuse(reactor, fd, listener->rules, URS_REFUSED_SESSIONS);
        return;
    }
    if (options->handshakes_max != 0 && reactor->handshakes >= options->handshakes_max && !make_room(reactor)) {
        refuse(reactor, fd, listener->rules, URS_REFUSED_HANDSHAKES);
        return;
    }
    struct urs_session *session = urs_life_new(reactor, fd, listener->is_unix, listener->rules);
    if (session == NULL) {
        refuse(reactor, fd, listener->rules, URS_REFUSED_MEMORY);
        return;
    }
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    session->listener = (uint32_t)(listener - reactor->listeners);
    urs_peers_read(session);
    /* If proxies are in front, the address in the PROXY header is counted instead. */
    if (!rules->proxy_protocol && !urs_peers_count(reactor, session)) {
        urs_wheel_cancel(&reactor->wheel, session->slot);
        urs_session_free(&reactor->sessions, session);
        refuse(reactor, fd, listener->rules, URS_REFUSED_PER_IP);
        return;
    }
    reactor->handshakes++;
    reactor->listeners[session->listener].requests++;
    urs_peers_silent(reactor, session);
    urs_deadline_set(reactor, session, rules->handshake_ms);
    urs_intake_receive(reactor, session);
}

void urs_admission_arm(struct urs_reactor *reactor)
{
    for (uint32_t index = 0; index < reactor->listener_count; index++) {
        struct urs_listener *listener = &reactor->listeners[index];
        if (listener->state == URS_LISTENER_CLOSING && listener->armed
            && reactor->io->operations->accept_stop(reactor->io, index, listener->fd) != 0)
            urs_work_schedule_retry(reactor);
        else if (listener->state != URS_LISTENER_OPEN)
            listener->state = URS_LISTENER_CLOSED;
        if (listener->armed || reactor->draining || listener->state != URS_LISTENER_OPEN)
            continue;
        listener->armed = reactor->io->operations->accept(reactor->io, index, listener->fd) == 0;
        if (!listener->armed)
            urs_work_schedule_retry(reactor);
    }
}

void urs_admission_accepted(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    URS_ASSERT(completion->slot < reactor->listener_count);
    struct urs_listener *listener = &reactor->listeners[completion->slot];
    listener->armed = completion->more;
    switch (urs_io_accept_fate(completion->result)) {
    case URS_FATE_DATA:
        admit(reactor, completion->result, listener);
        break;
    case URS_FATE_LATER:
        /* The system lacks descriptors or memory: new connections wait in the queue of the listening socket. */
        reactor->stats.accept_pauses++;
        urs_work_schedule_retry(reactor);
        return;
    default:
        break;
    }
    if (!listener->armed)
        urs_admission_arm(reactor);
}

/* ---- the opening request ------------------------------------------------------------------------------------- */

void urs_admission_head(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes)
{
    struct urs_item item = {.kind = URS_EVENT_UPGRADE, .count = session->listener};
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    const struct urs_head_rules head_rules = {.bytes_max = rules->header_bytes_max,
                                              .proxy_protocol = rules->proxy_protocol};
    struct urs_block *held = NULL;
    size_t seen = 0;
    int error = 0;
    URS_ASSERT(session->state == URS_SESSION_AWAIT_HEAD && bytes > 0);
    urs_peers_spoke(reactor, session);
    if (session->held.block != NULL) {
        seen = urs_slice_bytes(&session->held);
        error = urs_session_hold(session, &reactor->memory, data, bytes);
        held = session->held.block;
        data = urs_slice_data(&session->held);
        bytes = urs_slice_bytes(&session->held);
    }
    int64_t head = error != 0 ? error : urs_head_find(data, bytes, seen, &head_rules);
    if (head == 0) {
        if (held == NULL)
            error = urs_session_hold(session, &reactor->memory, data, bytes);
        if (error != 0)
            urs_life_lose(reactor, session, error);
        return;
    }
    session->held = (struct urs_slice){0};
    urs_session_set_state(session, URS_SESSION_AWAIT_DECISION);
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
    urs_work_event(reactor, session->slot, &item);
}
