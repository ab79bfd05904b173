/* The calls from Python about topics and their members. */
#include "fanout.h"

#include <errno.h>

#include "apply.h"
#include "core.h"
#include "run.h"
#include "work.h"

/* Finds a topic for a call by the owner. Returns 0 or the error. */
static int find(struct urs_reactor *reactor, uint64_t id, struct urs_topic **topic)
{
    if (reactor == NULL)
        return URS_ERROR_STALE;
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    *topic = urs_topics_find(&reactor->topics, id);
    return *topic == NULL ? URS_ERROR_STALE : 0;
}

/* Like find, after the events before `index`. */
static int find_after(struct urs_reactor *reactor, uint64_t id, uint32_t index, struct urs_topic **topic)
{
    int refused = find(reactor, id, topic);
    if (refused == 0)
        urs_apply_events(reactor, index, URS_NO_EVENT);
    return refused;
}

int urs_fanout_open(struct urs_reactor *reactor, int on_full, const struct urs_history_limits *history,
                    uint64_t position, uint64_t *id)
{
    int refused = reactor == NULL ? URS_ERROR_STALE : urs_core_check(reactor);
    if (refused != 0)
        return refused;
    URS_ASSERT(on_full >= URS_TOPIC_CLOSE && on_full <= URS_TOPIC_CONFLATE);
    if (reactor->topics.count >= URS_TOPICS_MAX)
        return URS_ERROR_LIMIT;
    struct urs_topic *topic = urs_topics_new(&reactor->topics, (enum urs_topic_on_full)on_full);
    if (topic == NULL)
        return -ENOMEM;
    topic->history.limits = *history;
    topic->position = position;
    *id = urs_topic_id(&reactor->topics, topic);
    return 0;
}

int urs_fanout_hold(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_topic *topic;
    int refused = find(reactor, id, &topic);
    if (refused == 0)
        topic->held = true;
    return refused;
}

int urs_fanout_release(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_topic *topic;
    int refused = find(reactor, id, &topic);
    if (refused == 0)
        urs_topics_release(&reactor->topics, topic);
    return refused;
}

/* Finds a topic and an open session, after the events before `index`. No run is open then. Returns 0 or the error. */
static int find_both(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id,
                     struct urs_topic **topic, struct urs_session **session)
{
    int refused = find_after(reactor, id, index, topic);
    if (refused != 0)
        return refused;
    *session = urs_session_find(&reactor->sessions, session_id);
    if (*session == NULL)
        return URS_ERROR_STALE;
    urs_run_seal(reactor);
    return urs_session_is_open(*session) ? 0 : URS_ERROR_CLOSING;
}

int urs_fanout_add(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id)
{
    struct urs_topic *topic;
    struct urs_session *session;
    int refused = find_both(reactor, id, index, session_id, &topic, &session);
    return refused != 0 ? refused : urs_topic_add(topic, session);
}

/* Returns the bytes of the last `count` messages. */
static size_t bytes_of_last(const struct urs_history *history, uint32_t count)
{
    size_t bytes = 0;
    for (uint32_t place = history->count - count; place < history->count; place++)
        bytes += urs_slice_bytes(&urs_history_at(history, place)->frame);
    return bytes;
}

int64_t urs_fanout_add_since(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id,
                             uint64_t since)
{
    struct urs_topic *topic;
    struct urs_session *session;
    int error = find_both(reactor, id, index, session_id, &topic, &session);
    if (error != 0)
        return error;
    if (urs_topic_place(topic, session) != UINT32_MAX)
        return -EALREADY;
    const struct urs_history *history = &topic->history;
    urs_work_clock(reactor);
    urs_history_expire(&topic->history, reactor->now_ms);
    if (since > topic->position || topic->position - since > history->count)
        return URS_ERROR_STATE;
    uint32_t count = (uint32_t)(topic->position - since);
    size_t waiting = session->backlog.bytes + session->outbound.bytes;
    if (count > 0 && (session->unfinished || waiting + bytes_of_last(history, count)
                      > urs_core_rules(reactor, session)->backlog_bytes_max))
        return URS_ERROR_FULL;
    error = urs_outbox_reserve(&reactor->outbox, count, count);
    if (error == 0)
        error = urs_topic_add(topic, session);
    if (error != 0)
        return error;
    for (uint32_t place = history->count - count; place < history->count; place++)
        urs_outbound_publish(&reactor->outbox, &session->outbound,
                             urs_outbox_republish(&reactor->outbox, urs_history_at(history, place)->frame,
                                                  topic->index + 1));
    if (count > 0)
        urs_work_fanout(reactor, session);
    topic->stats.addressed += count;
    topic->stats.sent += count;
    reactor->stats.messages_out += count;
    return count;
}

int urs_fanout_position(struct urs_reactor *reactor, uint64_t id, uint64_t *oldest, uint64_t *newest)
{
    struct urs_topic *topic;
    int refused = find(reactor, id, &topic);
    if (refused != 0)
        return refused;
    urs_work_clock(reactor);
    urs_history_expire(&topic->history, reactor->now_ms);
    *newest = topic->position;
    *oldest = topic->position - topic->history.count;
    return 0;
}

void urs_fanout_expire(struct urs_reactor *reactor)
{
    urs_work_clock(reactor);
    urs_topics_expire(&reactor->topics, reactor->now_ms);
}

int urs_fanout_remove(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id)
{
    struct urs_topic *topic;
    int refused = find_after(reactor, id, index, &topic);
    if (refused != 0)
        return refused;
    struct urs_session *session = urs_session_find(&reactor->sessions, session_id);
    urs_run_seal(reactor);
    return session == NULL ? 0 : urs_topic_remove(&reactor->topics, &reactor->sessions, topic, session);
}

int urs_fanout_has(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id)
{
    struct urs_topic *topic;
    int refused = find_after(reactor, id, index, &topic);
    if (refused != 0)
        return refused;
    const struct urs_session *session = urs_session_find(&reactor->sessions, session_id);
    return session != NULL && urs_topic_place(topic, session) != UINT32_MAX;
}

int64_t urs_fanout_count(struct urs_reactor *reactor, uint64_t id, uint32_t index)
{
    struct urs_topic *topic;
    int refused = find_after(reactor, id, index, &topic);
    return refused != 0 ? refused : (int64_t)topic->count;
}

int64_t urs_fanout_topics(struct urs_reactor *reactor, uint64_t session_id, uint32_t index, uint64_t *ids, uint32_t room)
{
    int refused = reactor == NULL ? URS_ERROR_STALE : urs_core_check(reactor);
    if (refused != 0)
        return refused;
    urs_apply_events(reactor, index, URS_NO_EVENT);
    const struct urs_session *session = urs_session_find(&reactor->sessions, session_id);
    if (session == NULL || session->memberships == NULL)
        return 0;
    const struct urs_memberships *table = session->memberships;
    uint32_t count = 0;
    for (uint32_t at = 0; at < table->room && count < room; at++)
        if (table->entries[at].topic != 0)
            ids[count++] = urs_topic_id(&reactor->topics, reactor->topics.places[table->entries[at].topic - 1].topic);
    return table->count;
}

int urs_fanout_take_drop(struct urs_reactor *reactor, uint64_t session_id, uint64_t *id, uint32_t *count)
{
    int refused = reactor == NULL ? URS_ERROR_STALE : urs_core_check(reactor);
    if (refused != 0)
        return refused;
    const struct urs_session *session = urs_session_find(&reactor->sessions, session_id);
    if (session == NULL || session->memberships == NULL)
        return 0;
    const struct urs_memberships *table = session->memberships;
    for (uint32_t at = 0; at < table->room; at++) {
        if (table->entries[at].topic == 0)
            continue;
        const struct urs_topic *topic = reactor->topics.places[table->entries[at].topic - 1].topic;
        if (topic->drops == NULL || topic->drops[table->entries[at].place] == 0)
            continue;
        *id = urs_topic_id(&reactor->topics, topic);
        *count = topic->drops[table->entries[at].place];
        topic->drops[table->entries[at].place] = 0;
        return 1;
    }
    return 0;
}

int urs_fanout_stats(struct urs_reactor *reactor, uint64_t id, struct urs_topic_stats *stats)
{
    struct urs_topic *topic;
    int refused = find(reactor, id, &topic);
    if (refused == 0)
        *stats = topic->stats;
    return refused;
}

uint32_t urs_fanout_topic_count(const struct urs_reactor *reactor) { return reactor->topics.count; }
