/* Joining and leaving, through the shim's own sources. No reactor: the caller of these functions in the shim adds a check
 * of the thread, and applies the events before the call. */
#include "memberships.h"

#include <stdbool.h>
#include <stdlib.h>

#include "clock.h"
#include "session.h"
#include "topics.h"

struct loop_topics {
    struct urs_sessions sessions;
    struct urs_topics topics;
    uint32_t session_count;
    uint32_t topic_count;
    uint64_t *session_ids;               /* the last one stays in all topics */
    uint64_t *topic_ids;
};

static bool fill(struct loop_topics *loop)
{
    struct urs_session *session = NULL;
    for (uint32_t i = 0; i <= loop->session_count; i++) {
        session = urs_session_new(&loop->sessions, -1);
        if (session == NULL)
            return false;
        loop->session_ids[i] = urs_session_id(session);
    }
    for (uint32_t i = 0; i < loop->topic_count; i++) {
        struct urs_topic *topic = urs_topics_new(&loop->topics, URS_TOPIC_CLOSE);
        if (topic == NULL || urs_topic_add(topic, session) != 0)
            return false;
        loop->topic_ids[i] = urs_topic_id(&loop->topics, topic);
    }
    return true;
}

struct loop_topics *loop_topics_open(uint32_t sessions, uint32_t topics)
{
    struct loop_topics *loop = calloc(1, sizeof *loop);
    if (loop == NULL)
        return NULL;
    loop->session_count = sessions;
    loop->topic_count = topics;
    loop->session_ids = calloc((size_t)sessions + 1, sizeof *loop->session_ids);
    loop->topic_ids = calloc(topics, sizeof *loop->topic_ids);
    if (loop->session_ids == NULL || loop->topic_ids == NULL || !fill(loop)) {
        loop_topics_close(loop);
        return NULL;
    }
    return loop;
}

void loop_topics_close(struct loop_topics *loop)
{
    for (uint32_t slot = 0; slot < loop->sessions.slots; slot++)
        urs_topics_leave(&loop->topics, &loop->sessions, urs_session_at(&loop->sessions, slot));
    urs_topics_close(&loop->topics);
    urs_sessions_close(&loop->sessions);
    free(loop->session_ids);
    free(loop->topic_ids);
    free(loop);
}

/* Returns whether session number `number` has joined, or left, each of its topics. */
static bool change(struct loop_topics *loop, uint32_t number, uint32_t joins, bool join)
{
    bool accepted = true;
    for (uint32_t k = 0; k < joins; k++) {
        uint64_t id = loop->topic_ids[(number * (uint64_t)joins + k) % loop->topic_count];
        struct urs_topic *topic = urs_topics_find(&loop->topics, id);
        struct urs_session *session = urs_session_find(&loop->sessions, loop->session_ids[number]);
        if (topic == NULL || session == NULL)
            return false;
        accepted &= join ? urs_topic_add(topic, session) == 0
                         : urs_topic_remove(&loop->topics, &loop->sessions, topic, session) == 1;
    }
    return accepted;
}

int64_t loop_topics_visit(struct loop_topics *loop, uint32_t joins, uint64_t repeats)
{
    bool accepted = true;
    int64_t start = now();
    for (uint64_t i = 0; i < repeats; i++) {
        for (uint32_t number = 0; number < loop->session_count; number++)
            accepted &= change(loop, number, joins, true);
        for (uint32_t number = 0; number < loop->session_count; number++)
            accepted &= change(loop, number, joins, false);
    }
    return accepted ? now() - start : -1;
}
