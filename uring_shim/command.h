/* The calls from Python to one session. `id` is an id that an event named: a call for a session that is gone returns
 * URS_ERROR_STALE. Only the reactor's thread may call them. */
#ifndef URS_COMMAND_H
#define URS_COMMAND_H

#include "prepared.h"
#include "reactor.h"

/* cdef: begin */

/* Answers a request, in the turn of its event or at any time after it: accept sends the 101 response and opens the
 * session; reject sends any other response (0 bytes: none), then flushes and closes the session. Until then the
 * handshake deadline counts, and up to URS_EARLY_BYTES_MAX bytes that follow the request are kept for the open session;
 * more stay in the socket. Returns 0, URS_ERROR_STALE, URS_ERROR_STATE if the request is answered, URS_ERROR_CLOSING if
 * its socket is lost, or -ENOMEM. `deflate_terms` (enum urs_deflate_term) are those that
 * the 101 response names. */
int urs_command_accept(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes,
                       uint16_t deflate_terms);
int urs_command_reject(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes);

/* May be or-ed to an opcode to be sent: the message is not compressed, whatever the session agreed on. */
enum urs_send_flag { URS_SEND_UNCOMPRESSED = 0x10 };

/* Queues a frame. A whole message is compressed if the session agreed on that and it has rules.engine.deflate.bytes_min
 * bytes; fragments never are. `index` is the event being handled: the events before it are applied first. Returns an
 * urs_send_outcome (URS_QUEUED also from backlog_high_bytes, at least 256 KiB, on), URS_ERROR_STALE, URS_ERROR_CLOSING,
 * URS_ERROR_FULL (with URS_ON_FULL_ERROR) or -ENOMEM. */
int urs_command_send(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode, const uint8_t *data,
                     size_t bytes);

/* Like urs_command_send, for a prepared message, which is not copied. */
int urs_command_send_prepared(struct urs_reactor *reactor, uint64_t id, uint32_t index, struct urs_block *prepared);

/* Like urs_command_send, for a fragment that others follow (RFC 6455 5.4); urs_command_send with
 * URS_OPCODE_CONTINUATION sends the last one. Both return URS_ERROR_INTERLEAVED for a new message while one is
 * unfinished, URS_ERROR_CONTINUATION for a continuation of none, and URS_ERROR_FULL for a continuation that
 * URS_ON_FULL_DROP would drop. */
int urs_command_send_fragment(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode,
                              const uint8_t *data, size_t bytes);

/* Like urs_command_send, with the payload of event `index` itself; an `opcode` of 0 means the opcode of that event.
 * Returns URS_ERROR_STATE if the event is not a message, has been applied already, or is a continuation frame and
 * `opcode` is 0. */
int urs_command_send_event(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode);

/* Returns the message that event `index` is, so that its payload can be sent; NULL if the event is not a message, has
 * been applied already, or is a continuation frame and *opcode is 0. Replaces an *opcode of 0 by that of the event. */
const struct urs_item *urs_command_item(const struct urs_reactor *reactor, uint32_t index, uint8_t *opcode);

/* Sends a close frame, after the events before `index` are applied. The last of these events may be the message being
 * handled: its payload stays unchanged until the next turn. Returns 0 or a negative result. */
int urs_command_close(struct urs_reactor *reactor, uint64_t id, uint32_t index, unsigned code, const uint8_t *reason,
                      size_t bytes);

/* Ends the session without a close frame. */
int urs_command_abort(struct urs_reactor *reactor, uint64_t id);

int urs_command_pause(struct urs_reactor *reactor, uint64_t id);
int urs_command_resume(struct urs_reactor *reactor, uint64_t id);

/* Returns the enum urs_failure for which the shim itself closed the session, or URS_ERROR_STALE. It stays readable
 * while Python handles the event that ends the session. */
int urs_command_failure(struct urs_reactor *reactor, uint64_t id);

/* Returns the number of bytes that wait for the socket to take them, or URS_ERROR_STALE. */
int64_t urs_command_buffered(struct urs_reactor *reactor, uint64_t id);

/* Returns the seconds between the last ping and its pong; -1 if there is none yet or the session is gone. A lower
 * number is an urs_error. */
double urs_command_latency(struct urs_reactor *reactor, uint64_t id);

/* Returns the descriptor, or URS_ERROR_STALE. The reactor keeps the ownership of the descriptor. */
int urs_command_descriptor(struct urs_reactor *reactor, uint64_t id);

/* Copies the address of the session's peer. Returns 0 or URS_ERROR_STALE. */
int urs_command_peer(struct urs_reactor *reactor, uint64_t id, struct urs_peer *peer);

/* Records the peer that a trusted PROXY header named (NULL: there was no header), and counts the session for that
 * address instead of the address it was counted for before. Only if the session's rules have proxy_protocol. Returns
 * 0, URS_ERROR_LIMIT or URS_ERROR_STALE. */
int urs_command_set_proxied_peer(struct urs_reactor *reactor, uint64_t id, const struct urs_peer *peer);

/* Returns the session's state, or URS_SESSION_FREE if it is gone. Never returns URS_SESSION_OPEN if the session can no
 * longer send. May also return URS_ERROR_THREAD or URS_ERROR_FORKED. */
int urs_command_state(struct urs_reactor *reactor, uint64_t id);

/* cdef: end */

#endif
