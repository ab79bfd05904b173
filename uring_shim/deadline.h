/* Sets the clocks of a session; upkeep.h judges them. docs/deadlines.md has the table of the clocks. */
#ifndef URS_DEADLINE_H
#define URS_DEADLINE_H

#include "core.h"

enum { URS_LOOKS_PER_PERIOD = 4 };       /* the number of checks per period while a question is queued */

/* Returns the milliseconds from now to a time of the 32-bit clock; 0 if that time has passed. */
uint32_t urs_deadline_until(const struct urs_reactor *reactor, uint32_t at_ms);

/* Returns the milliseconds that the peer has to do what the deadline of the session's state waits for. */
uint32_t urs_deadline_period_ms(const struct urs_reactor *reactor, const struct urs_session *session);

/* Returns true if the session is between its close frame and the end of both streams. */
bool urs_deadline_is_ending(const struct urs_session *session);

/* Sets the session's timer to the next time at which one of its clocks must be checked. */
void urs_deadline_schedule(struct urs_reactor *reactor, struct urs_session *session);

/* Records that the peer must answer the bytes that were queued last. `queued`: see urs_deadline_set_ending. */
void urs_deadline_set_question(struct urs_session *session, bool queued);

/* Records that no pong is awaited. */
void urs_deadline_ping_answered(struct urs_session *session);

/* Sets the deadline of the session's state, `in_ms` from now; 0 means none. */
void urs_deadline_set(struct urs_reactor *reactor, struct urs_session *session, uint32_t in_ms);

/* Sets the deadline of a session that is ending, to close_ms from now. `queued` says that other bytes are in front of
 * the frame or the end of stream that the peer must answer: the deadline is then set again each time the peer has taken
 * enough of them. */
void urs_deadline_set_ending(struct urs_reactor *reactor, struct urs_session *session, bool queued);

/* The socket has taken the last byte that the session had to send: the clock that waits for its answer starts now. */
void urs_deadline_left(struct urs_reactor *reactor, struct urs_session *session);

/* The socket has taken a part of the bytes that an ending session has to send. */
void urs_deadline_left_in_part(struct urs_reactor *reactor, struct urs_session *session);

/* Returns true if bytes are waiting in the backlog, the segments or the socket. */
bool urs_deadline_is_queued(const struct urs_session *session);

/* Starts the clocks of a session that has become open. */
void urs_deadline_open(struct urs_reactor *reactor, struct urs_session *session);

/* The session reads again after a pause: restarts the clocks that wait for input. */
void urs_deadline_resumed(struct urs_reactor *reactor, struct urs_session *session);

#endif
