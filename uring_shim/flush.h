/* The way out: one send per session and flush, and the backlog of bytes that a socket did not take. */
#ifndef URS_FLUSH_H
#define URS_FLUSH_H

#include "core.h"

enum urs_flush_scope {
    URS_FLUSH_ALL = 0,
    URS_FLUSH_SLICE = 1                  /* of the sessions that have only published messages to send, at most
                                            fanout_turn_max; the others wait for the next flush */
};

/* Sends everything that is queued, or a slice of it, and empties the outbox if nothing is left. Returns 0, or -errno if
 * the backend is unusable. */
int urs_flush_sessions(struct urs_reactor *reactor, enum urs_flush_scope scope);

/* Sends everything that is queued if the frames written since the last flush have become large. Then the calls of one
 * turn need little memory, however many they are. Returns 0 or -errno. */
static inline int urs_flush_arena(struct urs_reactor *reactor)
{
    if (URS_LIKELY(reactor->outbox.arena_bytes <= URS_ARENA_FLUSH_BYTES) || !reactor->started)
        return 0;
    return urs_flush_sessions(reactor, URS_FLUSH_ALL);
}

/* Collects the completions that have arrived already, without a system call; dispatch handles them. */
void urs_flush_collect(struct urs_reactor *reactor);

/* Moves the segments of this turn, without their first `from` bytes, to the backlog, and checks the water marks. The
 * session is lost if there is no memory for them. */
void urs_flush_store(struct urs_reactor *reactor, struct urs_session *session, size_t from);

#endif
