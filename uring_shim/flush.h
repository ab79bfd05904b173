/* The way out: one send per session and flush, and the backlog of bytes that a socket did not take. */
#ifndef URS_FLUSH_H
#define URS_FLUSH_H

#include "core.h"

/* Sends everything that is queued. Returns 0, or -errno if the backend is unusable. */
int urs_flush_sessions(struct urs_reactor *reactor);

/* Collects the completions that have arrived already, without a system call; dispatch handles them. */
void urs_flush_collect(struct urs_reactor *reactor);

/* Moves the segments of this turn, without their first `from` bytes, to the backlog, and checks the water marks. The
 * session is lost if there is no memory for them. */
void urs_flush_store(struct urs_reactor *reactor, struct urs_session *session, size_t from);

#endif
