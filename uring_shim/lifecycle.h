/* How sessions begin once they are accepted, and every step of their end. */
#ifndef URS_LIFECYCLE_H
#define URS_LIFECYCLE_H

#include "core.h"

/* Creates a session for `fd` with the set of rules of that index, and grows every list so that it fits. Returns NULL if
 * there is no memory. */
struct urs_session *urs_life_new(struct urs_reactor *reactor, int fd, bool is_unix, uint8_t rules);

/* Opens a session whose upgrade is done. */
void urs_life_open(struct urs_reactor *reactor, struct urs_session *session);

/* Stops reading from an open session for one more reason. */
void urs_life_stop_input(struct urs_reactor *reactor, struct urs_session *session, enum urs_input_stop reason);

/* Removes a reason for which reading stopped, if there was that reason. Without any other one, reading goes on. */
void urs_life_resume_input(struct urs_reactor *reactor, struct urs_session *session, enum urs_input_stop reason);

/* Sends our close frame; the session then awaits the close frame of the peer. Returns 0 or -ENOMEM. */
int urs_life_close(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const uint8_t *reason,
                   size_t bytes);

/* Like urs_life_close, after a fault or at a limit: `code` is reported even if the peer never answers. */
void urs_life_fail(struct urs_reactor *reactor, struct urs_session *session, enum urs_failure failure);

/* Allows no more bytes to be queued: flushes the queued ones, shuts down our side, and waits for the peer's end of
 * stream. */
void urs_life_finish(struct urs_reactor *reactor, struct urs_session *session);

/* Continues the ending of a session once its last byte is sent. */
void urs_life_flushed(struct urs_reactor *reactor, struct urs_session *session);

/* The socket is unusable or the peer timed out (`error` is not 0), or the peer's stream has ended (`error` 0). Queues
 * URS_EVENT_LOST, at most once for the end of the stream and once for an error after it. */
void urs_life_lose(struct urs_reactor *reactor, struct urs_session *session, int error);

/* Shuts both sides down, and frees the session once its last completions have arrived. */
void urs_life_end(struct urs_reactor *reactor, struct urs_session *session);

/* Frees a session in AWAIT_REQUESTS if no completion is outstanding. */
void urs_life_try_free(struct urs_reactor *reactor, struct urs_session *session);

#endif
