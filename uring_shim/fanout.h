/* The calls from Python about topics and their members; publish.h has those that send. An id of a topic that is gone
 * gives URS_ERROR_STALE, as does that of a session that is gone. `index` is the event being handled: the events before
 * it are applied first, because they may end a session. */
#ifndef URS_FANOUT_H
#define URS_FANOUT_H

#include "reactor.h"
#include "topics.h"

/* cdef: begin */

/* Makes a topic and sets *id. Its position begins at `position`. Python holds it until urs_fanout_release. Returns 0,
 * URS_ERROR_LIMIT at URS_TOPICS_MAX, or -ENOMEM. */
int urs_fanout_open(struct urs_reactor *reactor, int on_full, const struct urs_history_limits *history,
                    uint64_t position, uint64_t *id);

/* Holds a topic again that has members but that Python had released. Returns 0 or URS_ERROR_STALE. */
int urs_fanout_hold(struct urs_reactor *reactor, uint64_t id);

/* Lets go of a topic. It is freed at the end of a turn in which it has no member and no history. Returns 0 or URS_ERROR_STALE. */
int urs_fanout_release(struct urs_reactor *reactor, uint64_t id);

/* Makes a session a member. Returns 0, 1 if it is one already, URS_ERROR_CLOSING if it is not open, URS_ERROR_STALE,
 * or -ENOMEM. A session that leaves URS_SESSION_OPEN leaves all its topics at once. */
int urs_fanout_add(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session);

/* Makes a session a member and first queues the messages after the position `since`, so that it gets each message once.
 * Returns their number; URS_ERROR_STATE if the history does not have them all, or `since` is no position of the topic;
 * URS_ERROR_FULL if they would exceed the session's backlog_bytes_max; -EALREADY if it is a member; or a result of
 * urs_fanout_add. On a negative result nothing is queued, and the session is no member. */
int64_t urs_fanout_add_since(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session,
                             uint64_t since);

/* Sets *newest to the position of the topic, and *oldest to the least position from which urs_fanout_add_since can go
 * on. Returns 0 or URS_ERROR_STALE. */
int urs_fanout_position(struct urs_reactor *reactor, uint64_t id, uint64_t *oldest, uint64_t *newest);

/* Drops from the histories what is too old, so that topics that are not used any more are freed. */
void urs_fanout_expire(struct urs_reactor *reactor);

/* Ends a membership. Returns 1, or 0 if the session is not a member or is gone, or URS_ERROR_STALE. */
int urs_fanout_remove(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session);

/* Returns 1 if the session is a member, 0 if it is not or is gone, or URS_ERROR_STALE. */
int urs_fanout_has(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint64_t session);

/* Returns the number of members, or URS_ERROR_STALE. */
int64_t urs_fanout_count(struct urs_reactor *reactor, uint64_t id, uint32_t index);

/* Copies at most `room` ids of the session's topics to `ids`. Returns how many topics it is a member of; 0 if it is
 * gone. */
int64_t urs_fanout_topics(struct urs_reactor *reactor, uint64_t session, uint32_t index, uint64_t *ids, uint32_t room);

/* Finds a topic of which messages were dropped for the session since the last call, or since the session became a member.
 * Sets *id, and *count to their number, and returns 1; 0 if there is none. */
int urs_fanout_take_drop(struct urs_reactor *reactor, uint64_t session, uint64_t *id, uint32_t *count);

/* Copies the topic's counters. Returns 0 or URS_ERROR_STALE. */
int urs_fanout_stats(struct urs_reactor *reactor, uint64_t id, struct urs_topic_stats *stats);

/* Returns the number of topics. */
uint32_t urs_fanout_topic_count(const struct urs_reactor *reactor);

/* cdef: end */

#endif
