/* The calls from Python about topics and their members. */
#include "fanout.h"

#include <errno.h>

#include "apply.h"
#include "core.h"
#include "run.h"

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

int urs_fanout_open(struct urs_reactor *reactor, int on_full, uint64_t *id)
{
    int refused = reactor == NULL ? URS_ERROR_STALE : urs_core_check(reactor);
    if (refused != 0)
        return refused;
    URS_ASSERT(on_full >= URS_TOPIC_CLOSE && on_full <= URS_TOPIC_CONFLATE);
    if (reactor->topics.count >= URS_TOPICS_MAX)
        return URS_ERROR_LIMIT;
    const struct urs_topic *topic = urs_topics_new(&reactor->topics, (enum urs_topic_on_full)on_full);
    if (topic == NULL)
        return -ENOMEM;
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

int urs_fanout_add(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session_id)
{
    struct urs_topic *topic;
    int refused = find_after(reactor, id, index, &topic);
    if (refused != 0)
        return refused;
    struct urs_session *session = urs_session_find(&reactor->sessions, session_id);
    if (session == NULL)
        return URS_ERROR_STALE;
    if (!urs_session_is_open(session))
        return URS_ERROR_CLOSING;
    urs_run_seal(reactor);
    return urs_topic_add(topic, session);
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
