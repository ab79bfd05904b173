/* One turn of the reactor, from completions to events and from replies to sends. This file is the hot path. The steps:
 *
 *     apply      write the replies for the last events into outbound lists, in wire order
 *     flush      send once per session that has something to send; copy what its socket refuses to its backlog
 *     release    return every receive buffer of the turn to the pool
 *     wait       wait for completions
 *     dispatch   pass the bytes through the session's engine; items become events
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fault.h"
#include "frame.h"
#include "invariants.h"

void urs_turn_clock(struct urs_reactor *reactor)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    reactor->now_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    reactor->now_ms = reactor->now_us / 1000;
}

void urs_turn_dirty(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!session->dirty) {
        session->dirty = true;
        urs_slots_push(&reactor->dirty, session->slot);
    }
}

void urs_turn_ready(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!session->ready) {
        session->ready = true;
        urs_slots_push(&reactor->ready, session->slot);
    }
}

static void delay(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!session->delayed) {
        session->delayed = true;
        urs_slots_push(&reactor->delayed, session->slot);
        urs_core_pause(reactor);
    }
}

void urs_turn_event(struct urs_reactor *reactor, uint32_t slot, const struct urs_item *item)
{
    if (reactor->dispatching && reactor->event_count < URS_EVENTS_MAX) {
        reactor->events[reactor->event_count] = (struct urs_event){.item = *item, .slot = slot};
        reactor->targets[reactor->event_count++] = URS_TARGET_OTHER;
        reactor->visible++;
    } else if (reactor->late_count < reactor->late_room) {
        reactor->late[reactor->late_count++] = (struct urs_event){.item = *item, .slot = slot};
        urs_core_session(reactor, slot)->late_events++;
    } else {
        /* The lists have room for every event that a session can cause (LATE_EVENTS), so this cannot happen. A session
         * whose end is not reported would stay for ever, so the whole reactor reports the fault instead. */
        URS_ASSERT(false);
        reactor->broken = true;
    }
}

static void store(struct urs_reactor *reactor, struct urs_session *session, size_t from);

/* ---- apply ------------------------------------------------------------------------------------------------- */

/* Returns whether `count` messages of `bytes` bytes in total may join. If the backlog is full, applies on_full; no call
 * of Python's can raise BacklogFull here, so URS_ON_FULL_ERROR closes too. */
static bool may_join(struct urs_reactor *reactor, struct urs_session *session, uint32_t count, size_t bytes)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    enum urs_gate gate = urs_gate_check(session, rules, URS_OUTPUT_MESSAGE, bytes);
    if (URS_UNLIKELY(gate == URS_GATE_FULL)) {
        reactor->stats.drops += count;
        if (rules->on_full != URS_ON_FULL_DROP)
            urs_life_fail(reactor, session, URS_FAILURE_BACKLOG);
    }
    return gate == URS_GATE_OPEN;
}

static int answer(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item, bool in_hand)
{
    if (item->kind == URS_ITEM_ANSWERS)
        return urs_outbound_answers(&reactor->outbox, &session->outbound, item);
    if (URS_UNLIKELY(in_hand))
        return urs_outbound_answer_unmoved(&reactor->outbox, &session->outbound, item, item->opcode, item->fin);
    return urs_outbound_answer(&reactor->outbox, &session->outbound, item, item->opcode, item->fin);
}

static void apply_message(struct urs_reactor *reactor, struct urs_session *session, uint32_t index, bool in_hand)
{
    struct urs_item *item = &reactor->events[index].item;
    bool echo = reactor->options.verdicts[index] != 0;
    uint32_t count = item->kind == URS_ITEM_ANSWERS ? item->count : 1;
    if (echo && may_join(reactor, session, count, item->bytes)) {
        reactor->stats.messages_out += count;
        int error = answer(reactor, session, item, in_hand);
        if (error != 0)
            urs_life_lose(reactor, session, error);
        urs_turn_dirty(reactor, session);
    } else if (item->block != NULL) {
        urs_block_drop(item->block);
        item->block = NULL;
    }
}

/* Puts the pong in the place of the last one that waits: RFC 6455 5.5.3 allows answering only the latest ping, and a
 * peer that does not read pongs then costs no further memory. */
static void replace_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item)
{
    store(reactor, session, 0);  /* the bytes queued earlier stay in front */
    if (session->lost)
        return;
    int error = urs_backlog_store_pong(session, &reactor->memory, item->payload, item->bytes);
    if (error != 0)
        urs_life_lose(reactor, session, error);
}

static void count_pong(struct urs_session *session)
{
    if (session->backlog.bytes == 0)
        session->pongs = 0;
    else
        session->pongs++;
}

/* Sends pongs, and close frames that answer one. */
static void apply_owed(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item)
{
    bool ping = item->kind == URS_ITEM_PING;
    enum urs_gate gate = urs_gate_check(session, urs_core_rules(reactor, session),
                                        ping ? URS_OUTPUT_PONG : URS_OUTPUT_CLOSE, item->bytes);
    if (gate == URS_GATE_OPEN) {
        if (ping)
            count_pong(session);
        if (urs_outbound_owed(&reactor->outbox, &session->outbound, item) != 0)
            urs_life_lose(reactor, session, -ENOMEM);
        urs_turn_dirty(reactor, session);
    } else {
        if (gate == URS_GATE_LATEST)
            replace_pong(reactor, session, item);
        urs_block_drop(item->block);
        item->block = NULL;
    }
    if (!ping)
        urs_life_finish(reactor, session);
}

static void apply_lost(struct urs_reactor *reactor, struct urs_session *session)
{
    /* If only our side has ended, the session does not end yet: the peer may still be sending, and needs time to read
     * our last bytes. */
    bool both_ended = session->state == URS_SESSION_AWAIT_END && session->input_ended;
    if (session->lost || both_ended)
        urs_life_end(reactor, session);
    else
        urs_life_finish(reactor, session);
}

void urs_turn_apply(struct urs_reactor *reactor, uint32_t until, uint32_t in_hand)
{
    /* Between two turns no event is being handled. Events that an exception kept from Python must not be applied yet:
     * that would release their payloads. */
    if (until > reactor->event_count)
        until = *reactor->options.handled;
    /* If a signal ended the turn early, it has fewer events than the turn that the caller's index belongs to. */
    until = (uint32_t)urs_min(until, reactor->event_count);
    for (; reactor->applied < until; reactor->applied++) {
        struct urs_event *event = &reactor->events[reactor->applied];
        struct urs_session *session = urs_core_session(reactor, event->slot);
        switch (event->item.kind) {
        case URS_ITEM_MESSAGE:
        case URS_ITEM_FRAME:
        case URS_ITEM_ANSWERS:
            apply_message(reactor, session, reactor->applied, reactor->applied == in_hand);
            break;
        case URS_ITEM_PING:
        case URS_ITEM_CLOSE:
        case URS_ITEM_FAILED:
            apply_owed(reactor, session, &event->item);
            break;
        case URS_EVENT_LOST:
            apply_lost(reactor, session);
            break;
        default:
            urs_block_drop(event->item.block);
            event->item.block = NULL;
            break;
        }
    }
}

/* ---- flush ------------------------------------------------------------------------------------------------- */

/* Checks the water marks after the backlog has grown or shrunk. */
static void note_backlog(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    if (session->backlog.bytes >= rules->backlog_high_bytes) {
        session->above_high = true;
        /* In run_echo, a peer that does not read its replies is not read from either. */
        if (reactor->echo && !session->choked) {
            session->choked = true;
            urs_turn_receive(reactor, session);
        }
    } else if (session->above_high && session->backlog.bytes <= rules->backlog_low_bytes) {
        session->above_high = false;
        if (session->state == URS_SESSION_OPEN && !session->drain_told) {
            session->drain_told = true;
            urs_turn_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_DRAIN});
        }
        if (session->choked) {
            session->choked = false;
            urs_deadline_resumed(reactor, session);
            if (session->held.block != NULL)
                urs_turn_ready(reactor, session);
            urs_turn_receive(reactor, session);
        }
    }
}

static void store(struct urs_reactor *reactor, struct urs_session *session, size_t from)
{
    int error = urs_backlog_store(session, &reactor->outbox, &reactor->memory, from);
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
    if (session->state == URS_SESSION_FREE || session->lost) {
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        return 0;
    }
    if (session->outbound.first != 0 && (session->backlog.bytes > 0 || session->polling || session->delayed))
        store(reactor, session, 0);
    if (session->polling || session->delayed || session->lost)
        return 0;
    if (session->outbound.first == 0 && session->backlog.bytes == 0) {
        urs_life_flushed(reactor, session);
        return 0;
    }
    if (reactor->vector_count + URS_IO_VECTORS_MAX > URS_VECTORS)
        return -EBUSY;

    struct iovec *vectors = reactor->vectors + reactor->vector_count;
    session->sent_backlog = session->backlog.bytes > 0;
    uint32_t count = session->sent_backlog ? urs_backlog_vectors(session, vectors, URS_IO_VECTORS_MAX)
                                           : segment_vectors(reactor, session, vectors);
    if (reactor->loans != NULL && !session->sent_backlog) {
        int error = urs_zero_copy_send(reactor, session);
        if (error == 0) {
            session->offered = (uint32_t)session->outbound.bytes;
            reactor->sends++;
            session->sending = true;
        }
        if (error != -ENOTSUP)
            return error;
    }
    session->offered = 0;
    for (uint32_t index = 0; index < count; index++)
        session->offered += (uint32_t)vectors[index].iov_len;
    int error = reactor->io->operations->send(reactor->io, session->slot, session->generation, session->fd, vectors,
                                              count);
    if (error != 0)
        return error;
    reactor->vector_count += count;
    reactor->sends++;
    session->sending = true;
    return 0;
}

/* The remaining bytes wait until the socket is writable, or for URS_DELAY_MS if the system was short of memory. */
static void wait_writable(struct urs_reactor *reactor, struct urs_session *session, enum urs_io_fate fate)
{
    reactor->stats.sends_short++;
    if (fate == URS_FATE_LATER
        || reactor->io->operations->writable(reactor->io, session->slot, session->generation, session->fd) != 0)
        delay(reactor, session);
    else
        session->polling = true;
}

static void on_sent(struct urs_reactor *reactor, struct urs_session *session, int32_t result)
{
    enum urs_io_fate fate = urs_io_send_fate(result);
    size_t sent = result > 0 ? (size_t)result : 0;
    URS_ASSERT(session->sending && sent <= session->offered);
    reactor->stats.bytes_out += sent;
    session->sent_bytes += (uint32_t)sent;
    session->sending = false;
    session->unsure = session->unsure && sent == 0;
    if (session->sent_backlog) {
        urs_backlog_consume(session, sent);
        note_backlog(reactor, session);
    } else if (URS_LIKELY(sent == session->outbound.bytes)) {
        urs_outbound_clear(&reactor->outbox, &session->outbound);
        if (URS_UNLIKELY(session->above_high))
            note_backlog(reactor, session);
        urs_life_flushed(reactor, session);
        return;
    } else if (fate != URS_FATE_LOST) {
        store(reactor, session, sent);
    }
    if (fate == URS_FATE_LOST)
        urs_life_lose(reactor, session, result);
    else if (session->backlog.bytes == 0)
        urs_life_flushed(reactor, session);
    else if ((uint32_t)sent == session->offered)
        urs_turn_dirty(reactor, session);
    else
        wait_writable(reactor, session, fate);
}

/* Sends the same bytes again in this flush; they are still in place. */
static void send_again(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->sending && !session->sent_backlog);
    session->sending = false;
    urs_turn_dirty(reactor, session);
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

void urs_turn_collect(struct urs_reactor *reactor)
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

int urs_turn_flush(struct urs_reactor *reactor)
{
    int error = 0;
    while (reactor->dirty.count > 0 && error == 0) {
        uint32_t count = reactor->dirty.count;
        for (uint32_t index = 0; index < count && error == 0; index++) {
            struct urs_session *session = urs_core_session(reactor, reactor->dirty.slots[index]);
            session->dirty = false;
            while ((error = send_one(reactor, session)) == -EBUSY && (error = submit(reactor)) == 0)
                ;
        }
        /* Sessions that became dirty meanwhile (because more of their backlog must be sent) come after the first
         * `count`. */
        reactor->dirty.count -= count;
        memmove(reactor->dirty.slots, reactor->dirty.slots + count, reactor->dirty.count * sizeof(uint32_t));
        if (error == 0)
            error = submit(reactor);
    }
    return error;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------- */

/* Once open, receive only when the engine has no held input left: further input of a fast peer then stays in its
 * socket. */
static bool wants_input(const struct urs_session *session)
{
    if (session->input_ended || session->lost || session->state == URS_SESSION_AWAIT_REQUESTS)
        return false;
    if (session->state == URS_SESSION_OPEN || session->state == URS_SESSION_AWAIT_CLOSE)
        return session->held.block == NULL && urs_core_may_feed(session);
    if (session->state == URS_SESSION_AWAIT_VERDICT)
        return session->held.block == NULL || urs_slice_bytes(&session->held) < URS_EARLY_BYTES_MAX;
    return true;
}

static void arm(struct urs_reactor *reactor, struct urs_session *session, bool once)
{
    URS_ASSERT(!session->receiving && !session->parked && !session->delayed);
    session->receiving = true;
    if (reactor->io->operations->receive(reactor->io, session->slot, session->generation, session->fd, once) != 0) {
        session->receiving = false;
        delay(reactor, session);
    }
}

void urs_turn_stop_receiving(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->receiving && !session->stopping)
        session->stopping = reactor->io->operations->receive_stop(reactor->io, session->slot, session->generation,
                                                                  session->fd) == 0;
}

void urs_turn_receive(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->state == URS_SESSION_FREE || session->parked || session->delayed)
        return;
    if (!wants_input(session))
        urs_turn_stop_receiving(reactor, session);
    else if (session->receiving)
        return;
    else if (URS_UNLIKELY(urs_intake_is_short(reactor)))
        urs_intake_queue(reactor, session);
    else
        arm(reactor, session, session->local);
}

bool urs_turn_receive_once(struct urs_reactor *reactor, struct urs_session *session)
{
    if (session->receiving || session->parked || session->delayed || !wants_input(session))
        return false;
    arm(reactor, session, true);
    return true;
}

/* Takes a pong, or a message that came after our close frame. Returns true if the rules ask for it as an event;
 * otherwise the item is dropped. */
static bool is_asked_for(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    bool open = session->state == URS_SESSION_OPEN;
    bool pong = item->kind == URS_ITEM_PONG;
    URS_ASSERT(pong || session->state == URS_SESSION_AWAIT_CLOSE);
    if (pong)
        urs_deadline_pong(reactor, session, item);
    if ((pong && !rules->deliver_pongs) || (!open && !rules->deliver_while_closing)) {
        urs_block_drop(item->block);
        return false;
    }
    return true;
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
    while (reactor->event_count < until) {
        uint32_t index = reactor->event_count;
        struct urs_event *event = &reactor->events[index];
        struct urs_item *item = &event->item;
        int kind = echo ? urs_engine_echo(&session->engine, &rules->engine, input, item) : URS_ITEM_NONE;
        if (kind == URS_ITEM_NONE)
            kind = urs_engine_next(&session->engine, &rules->engine, &reactor->memory, input, item);
        if (kind == URS_ITEM_NONE)
            break;
        bool message = kind == URS_ITEM_MESSAGE || kind == URS_ITEM_FRAME || kind == URS_ITEM_ANSWERS;
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
        reactor->options.verdicts[index] = reactor->echo;
        reactor->stats.messages_in += kind == URS_ITEM_ANSWERS ? item->count : message;
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
        urs_turn_ready(reactor, session);
    urs_turn_receive(reactor, session);  /* this stops the receive until the engine has caught up */
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
    if (session->lost)
        return;  /* Python has been told of the end already, so a request may no longer open the session */
    session->last_input_ms = (uint32_t)reactor->now_ms;
    switch ((enum urs_session_state)session->state) {
    case URS_SESSION_OPEN:
    case URS_SESSION_AWAIT_CLOSE:
        take_input(reactor, session, data, bytes);
        break;
    case URS_SESSION_AWAIT_HEAD:
        urs_life_head(reactor, session, data, bytes);
        break;
    case URS_SESSION_AWAIT_VERDICT:
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

static void on_receive(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    struct urs_session *session = urs_core_session(reactor, completion->slot);
    if (completion->buffer != URS_IO_NO_BUFFER)
        reactor->used_buffers[reactor->used_count++] = completion->buffer;
    if (URS_UNLIKELY((session->generation & 0xffffff) != completion->generation))
        return;
    if (!completion->more)
        session->receiving = session->stopping = false;

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
        delay(reactor, session);
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
    else if (!session->receiving)
        urs_turn_receive(reactor, session);
    else if (URS_UNLIKELY(session->heavy) && urs_intake_is_short(reactor))
        urs_turn_stop_receiving(reactor, session);  /* a multishot receive would overtake waiting sessions */
}

static void on_writable(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    struct urs_session *session = urs_core_session(reactor, completion->slot);
    if ((session->generation & 0xffffff) != completion->generation)
        return;
    session->polling = false;
    if (session->state == URS_SESSION_AWAIT_REQUESTS)
        urs_life_try_free(reactor, session);
    else if (completion->result == -EAGAIN)
        delay(reactor, session);
    else
        urs_turn_dirty(reactor, session);
}

/* Feeds held input: at most one receive's worth per session and turn. Half of the turn's message slots stay free for
 * newer input of other sessions. */
static void feed_held(struct urs_reactor *reactor)
{
    uint32_t count = reactor->ready.count;
    uint32_t done = 0;
    if (count == 0)
        return;
    while (done < count && reactor->event_count < URS_MESSAGES_MAX / 2) {
        struct urs_session *session = urs_core_session(reactor, reactor->ready.slots[done++]);
        session->ready = false;
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
            urs_turn_ready(reactor, session);
            continue;
        }
        urs_slice_drop(held);
        if (session->input_ended)
            urs_life_lose(reactor, session, 0);
        urs_turn_receive(reactor, session);
    }
    reactor->ready.count -= done;
    memmove(reactor->ready.slots, reactor->ready.slots + done, reactor->ready.count * sizeof(uint32_t));
}

static void dispatch(struct urs_reactor *reactor)
{
    URS_ASSERT(!reactor->dispatching);
    reactor->dispatching = true;
    while (reactor->completion_next < reactor->completion_count && reactor->event_count < URS_MESSAGES_MAX) {
        const struct urs_completion *completion = &reactor->completions[reactor->completion_next++];
        switch (completion->kind) {
        case URS_IO_RECEIVE:
            on_receive(reactor, completion);
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

/* ---- the turn ---------------------------------------------------------------------------------------------- */

static void rearm(struct urs_reactor *reactor)
{
    urs_watch_arm(reactor);
    urs_intake_serve(reactor);
    urs_intake_find_resets(reactor);
    if (reactor->delayed_until_ms == 0 || reactor->now_ms < reactor->delayed_until_ms)
        return;
    uint32_t count = reactor->delayed.count;
    reactor->delayed.count = 0;
    reactor->delayed_until_ms = 0;
    for (uint32_t index = 0; index < count; index++) {
        struct urs_session *session = urs_core_session(reactor, reactor->delayed.slots[index]);
        session->delayed = false;
        urs_turn_receive(reactor, session);
        urs_turn_dirty(reactor, session);
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
        uint32_t slot = reactor->dead.slots[index];
        struct urs_session *session = urs_core_session(reactor, slot);
        if (session->dirty || session->ready || session->parked || session->delayed || session->late_events > 0)
            urs_slots_push(&reactor->dead, slot);
        else
            urs_session_free(&reactor->sessions, session);
    }
    /* The last session is gone: Python may have nothing left to wait for. */
    if (count > 0 && reactor->sessions.in_use == 0)
        reactor->woken = true;
}

/* Ends a turn: afterwards nothing refers to its buffers, its events, or the sessions that ended in it. */
static int finish(struct urs_reactor *reactor)
{
    urs_turn_apply(reactor, reactor->event_count, URS_NO_EVENT);
    reactor->event_count = reactor->applied = reactor->visible = 0;
    *reactor->options.handled = 0;
    int error = urs_turn_flush(reactor);
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
    urs_outbox_reset(&reactor->outbox);
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
            session->drain_told = false;
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

/* Returns the nanoseconds that the turn may wait; negative: no limit. */
static int64_t patience(const struct urs_reactor *reactor, int64_t until_ms)
{
    bool work = reactor->event_count > 0 || reactor->woken || reactor->ready.count > 0 || reactor->dirty.count > 0
        || reactor->late_count > 0 || (urs_intake_waiting(reactor) > 0 && urs_intake_free_buffers(reactor) > 0);
    if (work)
        return 0;
    int64_t wait_ms = urs_wheel_next_ms(&reactor->wheel, reactor->now_ms);
    if (reactor->delayed_until_ms != 0)
        wait_ms = sooner(reactor, wait_ms, reactor->delayed_until_ms);
    if (reactor->resets_due_ms != 0)
        wait_ms = sooner(reactor, wait_ms, reactor->resets_due_ms);
    if (until_ms >= 0)
        wait_ms = sooner(reactor, wait_ms, (uint64_t)until_ms);
    return wait_ms < 0 ? -1 : wait_ms * 1000000;
}

/* Collects new completions, unless some of the previous ones are left. */
static int gather(struct urs_reactor *reactor, int64_t until_ms)
{
    const struct urs_io_operations *io = reactor->io->operations;
    if (reactor->completion_count == 0) {
        int64_t wait_ns = patience(reactor, until_ms);
        uint64_t start_us = reactor->now_us;
        do {
            /* Spinning is part of the wait: it delays neither a timer nor the caller's time-out. */
            int64_t spun_ns = (int64_t)(reactor->now_us - start_us) * 1000;
            int64_t left_ns = wait_ns < 0 ? wait_ns : wait_ns > spun_ns ? wait_ns - spun_ns : 0;
            bool spin = left_ns != 0 && spun_ns < (int64_t)reactor->options.busy_poll_us * 1000;
            int error = io->wait(reactor->io, spin ? 0 : left_ns);
            if (error != 0)
                return error;
            urs_turn_clock(reactor);
            /* The rest of the room is for completions that arrive among those of sends. */
            reactor->completion_count = io->collect(reactor->io, reactor->completions,
                                                    reactor->completion_room - URS_COMPLETIONS_SPARE);
            if (!spin)
                break;
        } while (reactor->completion_count == 0);
    }
    return 0;
}

int urs_reactor_turn(struct urs_reactor *reactor, int64_t timeout_ms, bool echo)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    if (URS_UNLIKELY(*reactor->options.handled < reactor->event_count))
        return (int)reactor->event_count;
    reactor->echo = echo;
    urs_turn_clock(reactor);
    int64_t until_ms = timeout_ms < 0 ? -1 : (int64_t)reactor->now_ms + timeout_ms;
    for (;;) {
        int error = finish(reactor);
        if (error != 0)
            return error;
        if (URS_UNLIKELY(reactor->broken))
            return -EOVERFLOW;
        reactor->turn++;
        reactor->stats.turns++;
        take_late(reactor);
        rearm(reactor);
        urs_deadline_run(reactor);
        urs_budget_enforce(reactor);
        feed_held(reactor);
        error = gather(reactor, until_ms);
        if (error != 0)
            return error == -EINTR && reactor->event_count > 0 ? (int)reactor->event_count : error;
        dispatch(reactor);
        urs_invariants_check(reactor);
        reactor->stats.events += reactor->event_count;
        if (reactor->visible > 0 || reactor->woken || (until_ms >= 0 && (int64_t)reactor->now_ms >= until_ms)) {
            reactor->woken = false;
            return (int)reactor->event_count;
        }
    }
}
