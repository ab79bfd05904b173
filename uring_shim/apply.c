/* Carries out what the events of a turn ask for, in wire order: echoes, pongs, close frames, and ends of sessions. The
 * bytes join the outbound list of their session; flush.c sends them. */
#include "apply.h"

#include <errno.h>

#include "flush.h"
#include "lifecycle.h"
#include "run.h"
#include "work.h"

/* Returns whether the echo of an item, of `count` messages, may join. If the backlog is full, applies on_full; no call of
 * Python's can raise BacklogFull here, so URS_ON_FULL_ERROR closes too, and a part of a message is never dropped. */
static bool may_join(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item,
                     uint32_t count)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    bool fragment = item->kind == URS_ITEM_FRAME && (!item->fin || item->opcode == URS_OPCODE_CONTINUATION);
    bool continues = fragment && item->opcode == URS_OPCODE_CONTINUATION;
    enum urs_gate gate = urs_gate_check(session, rules, continues ? URS_OUTPUT_CONTINUATION : URS_OUTPUT_MESSAGE,
                                        item->bytes);
    if (URS_UNLIKELY(gate == URS_GATE_FULL)) {
        reactor->stats.drops += count;
        if (rules->on_full != URS_ON_FULL_DROP || fragment)
            urs_life_fail(reactor, session, URS_FAILURE_BACKLOG);
    }
    if (URS_UNLIKELY(gate == URS_GATE_ORDER))
        urs_life_fail(reactor, session, URS_FAILURE_ORDER);
    if (URS_UNLIKELY(fragment) && gate == URS_GATE_OPEN)
        session->unfinished = !item->fin;
    return gate == URS_GATE_OPEN;
}

/* Compresses the echo of a message as any other send. Returns false if it must be sent uncompressed. */
static bool echo_compressed(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item, int *error)
{
    const struct urs_engine_rules *rules = &urs_core_rules(reactor, session)->engine;
    bool whole = item->fin && item->opcode != URS_OPCODE_CONTINUATION;
    if (!whole || !urs_engine_compresses(&session->engine, rules, item->bytes)
        || !urs_outbound_compressed(&reactor->outbox, &session->outbound, &session->engine, rules, &reactor->memory,
                                    item->opcode, item->payload, item->bytes, error))
        return false;
    reactor->stats.messages_deflated++;
    urs_block_drop(item->block);
    item->block = NULL;
    return true;
}

static int add_echo(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item, bool in_hand)
{
    int error;
    if (item->kind == URS_ITEM_ECHO_RUN)
        return urs_outbound_echo_run(&reactor->outbox, &session->outbound, item);
    if (URS_UNLIKELY(session->engine.deflate_terms != 0) && echo_compressed(reactor, session, item, &error))
        return error;
    if (URS_UNLIKELY(in_hand))
        return urs_outbound_echo_unmoved(&reactor->outbox, &session->outbound, item, item->opcode, item->fin);
    return urs_outbound_echo(&reactor->outbox, &session->outbound, item, item->opcode, item->fin);
}

static void apply_message(struct urs_reactor *reactor, struct urs_session *session, uint32_t index, bool in_hand)
{
    struct urs_item *item = &reactor->events[index].item;
    bool echo = reactor->options.echo_flags[index] != 0;
    uint32_t count = item->kind == URS_ITEM_ECHO_RUN ? item->count : 1;
    if (echo)
        urs_run_seal(reactor);
    if (echo && may_join(reactor, session, item, count)) {
        reactor->stats.messages_out += count;
        int error = add_echo(reactor, session, item, in_hand);
        if (error != 0)
            urs_life_lose(reactor, session, error);
        urs_work_dirty(reactor, session);
    } else if (item->block != NULL) {
        urs_block_drop(item->block);
        item->block = NULL;
    }
}

void urs_apply_echo(struct urs_reactor *reactor, uint32_t index)
{
    struct urs_event *event = &reactor->events[index];
    struct urs_block *block = event->item.block;
    URS_ASSERT(index >= reactor->applied && index < reactor->event_count);
    URS_ASSERT(reactor->options.echo_flags[index] != 0);
    if (block != NULL)
        urs_block_hold(block);  /* for the segment; the event keeps its own reference until it is applied */
    apply_message(reactor, urs_core_session(reactor, event->slot), index, true);
    event->item.block = block;
    reactor->options.echo_flags[index] = 0;
}

/* Puts the pong in the place of the last one that waits: RFC 6455 5.5.3 allows answering only the latest ping, and a
 * peer that does not read pongs then costs no further memory. */
static void replace_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item)
{
    urs_flush_store(reactor, session, 0);  /* the bytes queued earlier stay in front */
    if (urs_session_is_lost(session))
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
static void apply_reply(struct urs_reactor *reactor, struct urs_session *session, struct urs_item *item)
{
    urs_run_seal(reactor);
    bool ping = item->kind == URS_ITEM_PING;
    enum urs_gate gate = urs_gate_check(session, urs_core_rules(reactor, session),
                                        ping ? URS_OUTPUT_PONG : URS_OUTPUT_CLOSE, item->bytes);
    if (gate == URS_GATE_OPEN) {
        if (ping)
            count_pong(session);
        if (urs_outbound_reply(&reactor->outbox, &session->outbound, item) != 0)
            urs_life_lose(reactor, session, -ENOMEM);
        urs_work_dirty(reactor, session);
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
    if (urs_session_is_lost(session) || both_ended)
        urs_life_end(reactor, session);
    else
        urs_life_finish(reactor, session);
}

void urs_apply_events(struct urs_reactor *reactor, uint32_t until, uint32_t in_hand)
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
        case URS_ITEM_ECHO_RUN:
            apply_message(reactor, session, reactor->applied, reactor->applied == in_hand);
            break;
        case URS_ITEM_PING:
        case URS_ITEM_CLOSE:
        case URS_ITEM_FAILED:
            apply_reply(reactor, session, &event->item);
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
