/* One message to many sessions. */
#include "publish.h"

#include <errno.h>

#include "apply.h"
#include "core.h"
#include "flush.h"
#include "lifecycle.h"
#include "run.h"
#include "work.h"

enum {
    PREFETCH_AHEAD = 8,                  /* members whose memory is fetched before they come to their turn */
    BLOCK_BYTES_MIN = 32768              /* a payload from this size on gets a block: it is not copied again for slow
                                            readers */
};

/* A message to send: bytes of the caller, or a prepared message. */
struct message {
    struct urs_block *prepared;          /* NULL: the other fields */
    const uint8_t *data;
    size_t bytes;
    uint8_t opcode;
};

/* A message on its way to its sessions. */
struct delivery {
    struct urs_publication *publication;
    size_t bytes;                        /* of the payload */
    size_t room;                         /* the least room that a member's backlog has after it */
    int64_t addressed;
    uint64_t taken;
    uint64_t dropped;
    uint64_t closed;
};

/* Finds out whether the caller may use the reactor, and applies the events before `index`, which may end members.
 * Returns 0 or an error. */
static int enter(struct urs_reactor *reactor, uint32_t index)
{
    if (reactor == NULL)
        return URS_ERROR_STALE;
    int refused = urs_core_check(reactor);
    if (refused == 0)
        urs_apply_events(reactor, index, URS_NO_EVENT);
    return refused;
}

/* Writes the frame, unless it is prepared. Returns 0 or an error. */
static int begin(struct urs_reactor *reactor, const struct message *message, size_t sessions,
                 struct delivery *delivery)
{
    struct urs_outbox *outbox = &reactor->outbox;
    URS_ASSERT(sessions <= UINT32_MAX);
    if (message->prepared != NULL) {
        delivery->bytes = urs_prepared_payload_bytes(message->prepared);
        delivery->publication = urs_outbox_publish_prepared(outbox, message->prepared, (uint32_t)sessions);
    } else {
        if (message->bytes > URS_PUBLISH_BYTES_MAX)
            return -EMSGSIZE;
        struct urs_memory *memory = message->bytes >= BLOCK_BYTES_MIN ? &reactor->memory : NULL;
        delivery->bytes = message->bytes;
        delivery->publication = urs_outbox_publish(outbox, memory, message->opcode, message->data, message->bytes,
                                                   (uint32_t)sessions);
    }
    return delivery->publication == NULL ? -ENOMEM : 0;
}

/* Flushes if the frames of this turn have become large. */
static int64_t end(struct urs_reactor *reactor, const struct delivery *delivery)
{
    reactor->stats.messages_out += delivery->taken;
    reactor->stats.drops += delivery->dropped + delivery->closed;
    int error = urs_flush_arena(reactor);
    return error != 0 ? error : delivery->addressed;
}

static enum urs_gate gate_of(const struct urs_reactor *reactor, const struct urs_session *session,
                             const struct delivery *delivery)
{
    return urs_gate_check(session, urs_core_rules(reactor, session), URS_OUTPUT_MESSAGE, delivery->bytes);
}

/* Queues the message for a session, or acts on the gate that refused it: closes the session, or leaves it out. Returns
 * true if it was left out. */
static bool deliver(struct urs_reactor *reactor, struct urs_session *session, struct delivery *delivery,
                    enum urs_gate gate, bool closes)
{
    URS_ASSERT(gate == URS_GATE_OPEN || gate == URS_GATE_FULL || gate == URS_GATE_ORDER);
    delivery->addressed++;
    if (URS_LIKELY(gate == URS_GATE_OPEN)) {
        delivery->taken++;
        urs_outbound_publish(&reactor->outbox, &session->outbound, delivery->publication);
        urs_work_fanout(reactor, session);
    } else if (closes) {
        delivery->closed++;
        urs_life_fail(reactor, session, gate == URS_GATE_FULL ? URS_FAILURE_BACKLOG : URS_FAILURE_ORDER);
    } else {
        delivery->dropped++;
        return true;
    }
    return false;
}

/* Tells Python of dropped messages, once for all until it has asked for them. */
static void note_drop(struct urs_reactor *reactor, struct urs_topic *topic, uint32_t place)
{
    struct urs_session *session = urs_core_session(reactor, topic->members[place]);
    urs_topic_note_drop(topic, place);
    if (!session->drop_event_queued) {
        session->drop_event_queued = true;
        urs_work_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_DROP});
    }
}

/* Makes room in a full backlog by leaving out messages of the topic that wait there. Returns the gate's new answer. */
static enum urs_gate make_room(struct urs_reactor *reactor, struct urs_topic *topic, uint32_t place,
                               struct urs_session *session, const struct delivery *delivery)
{
    enum urs_gate gate = URS_GATE_FULL;
    while (gate == URS_GATE_FULL && urs_backlog_drop(session, &reactor->topics, topic, place) > 0) {
        topic->stats.queued--;
        if (topic->on_full == URS_TOPIC_CONFLATE) {
            topic->stats.conflated++;
        } else {
            topic->stats.dropped++;
            reactor->stats.drops++;
            note_drop(reactor, topic, place);
        }
        gate = gate_of(reactor, session, delivery);
    }
    return gate;
}

static void note_room(const struct urs_reactor *reactor, const struct urs_session *session,
                      struct delivery *delivery)
{
    size_t max = urs_core_rules(reactor, session)->backlog_bytes_max;
    size_t waiting = session->backlog.bytes + session->outbound.bytes;
    delivery->room = urs_min(delivery->room, waiting < max ? max - waiting : 0);
}

static void deliver_to_member(struct urs_reactor *reactor, struct urs_topic *topic, uint32_t place,
                              struct delivery *delivery)
{
    struct urs_session *session = urs_core_session(reactor, topic->members[place]);
    enum urs_gate gate = gate_of(reactor, session, delivery);
    if (URS_UNLIKELY(gate == URS_GATE_FULL) && topic->hints != NULL)
        gate = make_room(reactor, topic, place, session, delivery);
    if (deliver(reactor, session, delivery, gate, topic->on_full == URS_TOPIC_CLOSE))
        note_drop(reactor, topic, place);
    else if (URS_LIKELY(gate == URS_GATE_OPEN))
        note_room(reactor, session, delivery);
}

/* Returns the slot of the member with that id, or UINT32_MAX if it is not a member. */
static uint32_t skipped_slot(const struct urs_reactor *reactor, const struct urs_topic *topic, uint64_t id)
{
    const struct urs_session *session = id == URS_SKIP_NONE ? NULL : urs_session_find(&reactor->sessions, id);
    return session != NULL && urs_topic_place(topic, session) != UINT32_MAX ? session->slot : UINT32_MAX;
}

static void prefetch(const struct urs_session *session)
{
    __builtin_prefetch(&session->outbound);
    __builtin_prefetch(&session->state);
}

/* Adds the results of a publish to the counters of its topic. */
static void count(struct urs_topic *topic, const struct delivery *delivery)
{
    topic->position++;
    topic->stats.published++;
    topic->stats.addressed += (uint64_t)delivery->addressed;
    topic->stats.sent += delivery->taken;
    topic->stats.dropped += delivery->dropped;
    topic->stats.closed += delivery->closed;
}

/* Publishes to each member by itself. Opens a run if all of them took the message. */
static void publish_to_each(struct urs_reactor *reactor, struct urs_topic *topic, uint32_t skipped,
                            struct delivery *delivery)
{
    delivery->room = SIZE_MAX;
    /* Backwards: a member that is closed here leaves, and the last one, which has had its turn, takes its place. */
    for (uint32_t place = topic->count; place-- > 0;) {
        if (place >= PREFETCH_AHEAD)
            prefetch(urs_core_session(reactor, topic->members[place - PREFETCH_AHEAD]));
        if (topic->members[place] != skipped)
            deliver_to_member(reactor, topic, place, delivery);
    }
    if (delivery->taken == (uint64_t)delivery->addressed && delivery->taken > 0
        && delivery->publication->kept.block == NULL && delivery->publication->prepared == NULL)
        urs_run_begin(reactor, topic, delivery->publication, skipped, delivery->room);
}

/* Adds the message to the topic's history. Without memory for it the history ends: it may have no hole. */
static void keep_history(struct urs_reactor *reactor, struct urs_topic *topic, struct urs_publication *publication)
{
    if (urs_topics_keep(&reactor->topics, &reactor->memory, publication) != 0)
        urs_history_clear(&topic->history);
    else
        urs_history_add(&topic->history, publication->kept, reactor->now_ms);
}

static int64_t publish(struct urs_reactor *reactor, uint64_t topic_id, uint32_t index, const struct message *message,
                       uint64_t skip)
{
    struct delivery delivery = {0};
    int error = enter(reactor, index);
    if (error != 0)
        return error;
    struct urs_topic *topic = urs_topics_find(&reactor->topics, topic_id);
    if (topic == NULL)
        return URS_ERROR_STALE;
    bool keeps = topic->history.limits.messages_max > 0;
    if (topic->count == 0 && !keeps) {
        count(topic, &delivery);
        return 0;
    }
    uint32_t skipped = skipped_slot(reactor, topic, skip);
    bool in_run = message->prepared == NULL && message->bytes < BLOCK_BYTES_MIN
        && urs_run_takes(reactor, topic, message->bytes);
    if (!in_run)
        urs_run_seal(reactor);
    error = begin(reactor, message, in_run ? URS_RUN_SEGMENTS : topic->count, &delivery);
    if (error != 0)
        return error;
    urs_topics_label(&reactor->topics, topic, delivery.publication);
    if (in_run) {
        urs_run_extend(reactor, delivery.publication, skipped);
        delivery.addressed = (int64_t)topic->count - (skipped != UINT32_MAX);
        delivery.taken = (uint64_t)delivery.addressed;
    } else {
        publish_to_each(reactor, topic, skipped, &delivery);
    }
    count(topic, &delivery);
    if (keeps)
        keep_history(reactor, topic, delivery.publication);
    return end(reactor, &delivery);
}

static int64_t send_many(struct urs_reactor *reactor, const uint64_t *ids, size_t count, uint32_t index,
                         const struct message *message)
{
    struct delivery delivery = {0};
    int error = enter(reactor, index);
    if (error == 0)
        urs_run_seal(reactor);
    if (error == 0)
        error = begin(reactor, message, count, &delivery);
    if (error != 0)
        return error;
    for (size_t number = 0; number < count; number++) {
        struct urs_session *session = urs_session_find(&reactor->sessions, ids[number]);
        if (session != NULL && urs_session_is_open(session))
            deliver(reactor, session, &delivery, gate_of(reactor, session, &delivery),
                    urs_core_rules(reactor, session)->on_full == URS_ON_FULL_CLOSE);
    }
    return end(reactor, &delivery);
}

static int64_t send_all(struct urs_reactor *reactor, uint32_t index, const struct message *message)
{
    struct delivery delivery = {0};
    int error = enter(reactor, index);
    if (error == 0)
        urs_run_seal(reactor);
    if (error == 0)
        error = begin(reactor, message, reactor->sessions.in_use, &delivery);
    if (error != 0)
        return error;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        struct urs_session *session = urs_core_session(reactor, slot);
        if (urs_session_is_open(session))
            deliver(reactor, session, &delivery, gate_of(reactor, session, &delivery),
                    urs_core_rules(reactor, session)->on_full == URS_ON_FULL_CLOSE);
    }
    return end(reactor, &delivery);
}

int64_t urs_publish(struct urs_reactor *reactor, uint64_t topic, uint32_t index, uint8_t opcode, const uint8_t *data,
                    size_t bytes, uint64_t skip)
{
    const struct message message = {.data = data, .bytes = bytes, .opcode = opcode};
    return publish(reactor, topic, index, &message, skip);
}

int64_t urs_send_many(struct urs_reactor *reactor, const uint64_t *ids, size_t count, uint32_t index, uint8_t opcode,
                      const uint8_t *data, size_t bytes)
{
    const struct message message = {.data = data, .bytes = bytes, .opcode = opcode};
    return send_many(reactor, ids, count, index, &message);
}

int64_t urs_send_all(struct urs_reactor *reactor, uint32_t index, uint8_t opcode, const uint8_t *data, size_t bytes)
{
    const struct message message = {.data = data, .bytes = bytes, .opcode = opcode};
    return send_all(reactor, index, &message);
}

int64_t urs_publish_prepared(struct urs_reactor *reactor, uint64_t topic, uint32_t index, struct urs_block *prepared,
                             uint64_t skip)
{
    const struct message message = {.prepared = prepared};
    return publish(reactor, topic, index, &message, skip);
}

int64_t urs_send_many_prepared(struct urs_reactor *reactor, const uint64_t *ids, size_t count, uint32_t index,
                               struct urs_block *prepared)
{
    const struct message message = {.prepared = prepared};
    return send_many(reactor, ids, count, index, &message);
}

int64_t urs_send_all_prepared(struct urs_reactor *reactor, uint32_t index, struct urs_block *prepared)
{
    const struct message message = {.prepared = prepared};
    return send_all(reactor, index, &message);
}
