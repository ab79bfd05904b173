/* The backlog of a session: the bytes that its socket did not take, in wire order. No I/O, no policy. */
#ifndef URS_BACKLOG_H
#define URS_BACKLOG_H

#include <sys/uio.h>

#include "base.h"
#include "outbound.h"
#include "session.h"
#include "topics.h"

/* Moves the segments of this turn, without their first `from` bytes, to the end of the backlog: large ones that lie in
 * blocks of their own and published frames by reference, everything else as a copy. A message of a topic that conflates
 * takes the place of the one that waits. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM; the list
 * of segments is empty afterwards. */
int urs_backlog_store(struct urs_session *session, struct urs_outbox *outbox, struct urs_topics *topics,
                      struct urs_memory *memory, size_t from);

/* Empties the list of segments of a session that is lost, and counts its published frames as closed. */
void urs_backlog_discard(struct urs_session *session, struct urs_outbox *outbox, struct urs_topics *topics);

/* Removes the oldest message of the topic that waits whole in the member's backlog; `place` is that of the member.
 * Returns its bytes, or 0 if there is none. */
size_t urs_backlog_drop(struct urs_session *session, const struct urs_topics *topics, struct urs_topic *topic,
                        uint32_t place);

/* Puts the pong of the latest ping into the backlog. It replaces the last pong that this function put there, or goes to
 * the end if the socket has taken a part of that pong. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM. */
int urs_backlog_store_pong(struct urs_session *session, struct urs_memory *memory, const uint8_t *payload,
                           size_t bytes);

/* Describes the first bytes of the backlog in at most `room` vectors; returns the number of vectors used. */
uint32_t urs_backlog_vectors(const struct urs_session *session, struct iovec *vectors, uint32_t room);

/* Removes `bytes` bytes from the front of the backlog. */
void urs_backlog_consume(struct urs_session *session, size_t bytes);

#endif
