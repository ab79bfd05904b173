/* Received bytes become events: each session has an engine, and a share of each turn. Input beyond the share is held. */
#include "feed.h"

#include <errno.h>
#include <string.h>

#include "admission.h"
#include "intake.h"
#include "lifecycle.h"
#include "upkeep.h"
#include "work.h"

/* Takes a pong, or a message that came after our close frame. Returns true if the rules ask for it as an event;
 * otherwise the item is dropped. */
static bool is_asked_for(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    bool open = session->state == URS_SESSION_OPEN;
    bool pong = item->kind == URS_ITEM_PONG;
    URS_ASSERT(pong || session->state == URS_SESSION_AWAIT_CLOSE);
    if (pong)
        urs_upkeep_pong(reactor, session, item);
    if ((pong && !rules->deliver_pongs) || (!open && !rules->deliver_while_closing)) {
        urs_block_drop(item->block);
        return false;
    }
    return true;
}

/* Counts an inflated message in the session's share of the turn, because few bytes may inflate to many. Returns whether
 * the share is used up. */
static bool uses_up_share(struct urs_reactor *reactor, struct urs_session *session, size_t bytes)
{
    reactor->stats.messages_inflated++;
    session->turn_bytes += (uint32_t)bytes;
    return session->turn_bytes >= urs_core_rules(reactor, session)->session_turn_bytes_max;
}

/* Turns bytes into events. If they lie in `block` (held input), the events keep it alive; otherwise they lie in a
 * receive buffer. Stops when the events of the turn, or the session's share of them, are used up. */
static void feed(struct urs_reactor *reactor, struct urs_session *session, struct urs_input *input,
                 struct urs_block *block)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    uint32_t first = reactor->event_count;
    uint32_t share = rules->session_turn_messages_max - session->turn_messages;
    uint32_t until = (uint32_t)urs_min(first + share, URS_MESSAGES_MAX);
    URS_ASSERT(session->turn == (uint16_t)reactor->turn);
    URS_ASSERT(session->turn_messages <= rules->session_turn_messages_max);
    bool open = session->state == URS_SESSION_OPEN;
    bool echo = reactor->echo && open;
    bool spent = false;
    while (reactor->event_count < until && !spent) {
        uint32_t index = reactor->event_count;
        struct urs_event *event = &reactor->events[index];
        struct urs_item *item = &event->item;
        int kind = echo ? urs_engine_echo(&session->engine, &rules->engine, input, item) : URS_ITEM_NONE;
        if (kind == URS_ITEM_NONE)
            kind = urs_engine_next(&session->engine, &rules->engine, &reactor->memory, input, item);
        if (kind == URS_ITEM_NONE)
            break;
        spent = URS_UNLIKELY(item->inflated) && uses_up_share(reactor, session, item->bytes);
        bool message = kind == URS_ITEM_MESSAGE || kind == URS_ITEM_FRAME || kind == URS_ITEM_ECHO_RUN;
        if (URS_UNLIKELY(kind == URS_ITEM_PONG || (message && !open)) && !is_asked_for(reactor, session, item))
            continue;
        if (block != NULL && item->block == NULL) {
            urs_block_hold(block);
            item->block = block;
        }
        event->slot = session->slot;
        reactor->targets[index] = message && open ? (int32_t)session->slot : URS_TARGET_OTHER;
        reactor->offsets[index] = item->block == NULL ? (uint32_t)(item->payload - reactor->pool.memory) : UINT32_MAX;
        reactor->lengths[index] = (uint32_t)item->bytes;
        reactor->opcodes[index] = item->opcode;
        reactor->options.echo_flags[index] = reactor->echo;
        reactor->stats.messages_in += kind == URS_ITEM_ECHO_RUN ? item->count : message;
        reactor->visible += message ? !reactor->echo : kind != URS_ITEM_PING;
        reactor->event_count++;
    }
    session->turn_messages += (uint16_t)(reactor->event_count - first);
}

static void hold(struct urs_reactor *reactor, struct urs_session *session, const struct urs_input *input)
{
    size_t bytes = (size_t)(input->end - input->next);
    if (bytes == 0)
        return;
    int error = urs_session_hold(session, &reactor->memory, input->next, bytes);
    if (error != 0) {
        urs_life_lose(reactor, session, error);
        return;
    }
    if (urs_core_may_feed(session))
        urs_work_queue_feed(reactor, session);
    urs_intake_receive(reactor, session);  /* this stops the receive until the engine has caught up */
}

/* Begins the session's share of this turn, unless it has begun already. */
static void begin_share(const struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->turn != (uint16_t)reactor->turn) {
        session->turn = (uint16_t)reactor->turn;
        session->turn_bytes = session->turn_messages = 0;
    }
}

/* Takes the bytes of a session whose upgrade is done. */
static void take_input(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes)
{
    struct urs_input input = {.next = data, .end = data + bytes};
    begin_share(reactor, session);
    /* Bytes that only continue a large frame complete no message, and feeding them is as cheap as holding them. So they
     * may exceed the session's share. */
    bool in_share = session->turn_bytes < urs_core_rules(reactor, session)->session_turn_bytes_max
        || (session->engine.phase == URS_ENGINE_AWAIT_PAYLOAD && bytes < session->engine.frame_left);
    bool may = session->held.block == NULL && urs_core_may_feed(session) && in_share;
    session->turn_bytes += (uint32_t)bytes;
    if (URS_LIKELY(may))
        feed(reactor, session, &input, NULL);
    hold(reactor, session, &input);
}

static void on_data(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes)
{
    reactor->stats.bytes_in += bytes;
    if (urs_session_is_lost(session))
        return;  /* Python has been told of the end already, so a request may no longer open the session */
    session->last_input_ms = (uint32_t)reactor->now_ms;
    switch ((enum urs_session_state)session->state) {
    case URS_SESSION_OPEN:
    case URS_SESSION_AWAIT_CLOSE:
        take_input(reactor, session, data, bytes);
        break;
    case URS_SESSION_AWAIT_HEAD:
        urs_admission_head(reactor, session, data, bytes);
        break;
    case URS_SESSION_AWAIT_DECISION:
        hold(reactor, session, &(struct urs_input){.next = data, .end = data + bytes});
        break;
    case URS_SESSION_AWAIT_FLUSH:
    case URS_SESSION_AWAIT_END:
    case URS_SESSION_AWAIT_REQUESTS:
    case URS_SESSION_FREE:
    default:
        break;
    }
}

void urs_feed_received(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    struct urs_session *session = urs_core_session(reactor, completion->slot);
    if (completion->buffer != URS_IO_NO_BUFFER)
        reactor->used_buffers[reactor->used_count++] = completion->buffer;
    if (URS_UNLIKELY((session->generation & 0xffffff) != completion->generation))
        return;
    if (!completion->more)
        urs_session_set_receive(session, URS_RECEIVE_IDLE);

    switch (urs_io_receive_fate(completion->result)) {
    case URS_FATE_DATA:
        urs_intake_measure(reactor, session, (size_t)completion->result);
        if (completion->more)
            urs_intake_doubt(reactor, session);
        on_data(reactor, session, urs_pool_buffer(&reactor->pool, completion->buffer), (size_t)completion->result);
        break;
    case URS_FATE_END:
        session->input_ended = true;
        /* Held input came before the end of the stream, so it is handled first. */
        if (session->held.block == NULL || session->state == URS_SESSION_AWAIT_HEAD)
            urs_life_lose(reactor, session, 0);
        break;
    case URS_FATE_PARK:
        urs_intake_shortage(reactor);  /* the call below adds the session to the queue */
        break;
    case URS_FATE_LATER:
        urs_work_retry_receive(reactor, session);
        break;
    case URS_FATE_AGAIN:
    case URS_FATE_STOPPED:
        break;
    case URS_FATE_LOST:
    default:
        urs_life_lose(reactor, session, completion->result);
        break;
    }
    if (session->state == URS_SESSION_AWAIT_REQUESTS)
        urs_life_try_free(reactor, session);
    else if (!urs_session_is_receiving(session))
        urs_intake_receive(reactor, session);
    else if (URS_UNLIKELY(session->heavy) && urs_intake_is_short(reactor))
        urs_intake_stop(reactor, session);  /* a multishot receive would overtake waiting sessions */
}

void urs_feed_held(struct urs_reactor *reactor)
{
    uint32_t count = reactor->feed_list.count;
    uint32_t done = 0;
    if (count == 0)
        return;
    while (done < count && reactor->event_count < URS_MESSAGES_MAX / 2) {
        struct urs_session *session = urs_core_session(reactor, reactor->feed_list.slots[done++]);
        urs_session_leave(session, URS_LIST_FEED);
        struct urs_slice *held = &session->held;
        if (held->block == NULL || !urs_core_may_feed(session))
            continue;
        uint8_t *data = urs_slice_data(held);
        size_t bytes = urs_min(urs_slice_bytes(held), reactor->pool.buffer_bytes);
        struct urs_input input = {.next = data, .end = data + bytes};
        begin_share(reactor, session);
        feed(reactor, session, &input, held->block);
        held->start += (uint32_t)(input.next - data);
        if (urs_slice_bytes(held) > 0) {
            urs_work_queue_feed(reactor, session);
            continue;
        }
        urs_slice_drop(held);
        if (session->input_ended)
            urs_life_lose(reactor, session, 0);
        urs_intake_receive(reactor, session);
    }
    reactor->feed_list.count -= done;
    memmove(reactor->feed_list.slots, reactor->feed_list.slots + done, reactor->feed_list.count * sizeof(uint32_t));
}
