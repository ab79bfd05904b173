/* The reactor as Python sees it: one thread, one I/O backend, many sessions. Python calls urs_reactor_turn, reads the
 * events it returns, answers through the urs_session_* calls, and calls again. Every call but urs_reactor_wake
 * belongs to the thread that called urs_reactor_start, and fails with URS_ERROR_THREAD in others. An id is
 * generation << 32 | slot; ids of sessions that are gone give URS_ERROR_STALE. */
#ifndef URS_REACTOR_H
#define URS_REACTOR_H

#include "engine.h"
#include "io.h"
#include "session.h"

/* cdef: begin */

enum urs_on_full { URS_ON_FULL_CLOSE = 0, URS_ON_FULL_DROP = 1, URS_ON_FULL_ERROR = 2 };

enum urs_zero_copy { URS_ZERO_COPY_NEVER = 0, URS_ZERO_COPY_AUTO = 1, URS_ZERO_COPY_ALWAYS = 2 };

enum urs_send_outcome { URS_SENT = 0, URS_QUEUED = 1, URS_DROPPED = 2 };

/* Kinds of events beyond enum urs_item_kind. */
enum urs_event_kind {
    URS_EVENT_UPGRADE = 16,              /* the payload is a request's head; error: 0, TOO_BIG or REQUEST */
    URS_EVENT_LOST = 17,                 /* the session ends without a close frame of the peer's; error: 0 (end of
                                            stream), -errno, or an urs_error */
    URS_EVENT_DRAIN = 18                 /* the backlog fell to the low water mark */
};

/* What a turn gives as the target of an event that is no message. */
enum urs_event_target { URS_TARGET_OTHER = -1 };

struct urs_event {
    struct urs_item item;
    uint32_t slot;
};

/* Why a connection was not taken, or a request not answered with 101. */
enum urs_refusal {
    URS_REFUSED_SESSIONS = 0,
    URS_REFUSED_PER_IP = 1,
    URS_REFUSED_HANDSHAKES = 2,
    URS_REFUSED_DRAINING = 3,
    URS_REFUSED_TIMEOUT = 4,
    URS_REFUSED_MEMORY = 5,
    URS_REFUSALS = 6
};

/* An HTTP answer, sent as it is except for its Date. */
struct urs_answer {
    uint8_t *data;
    size_t bytes;                        /* 0: nothing is answered */
    size_t date_at;                      /* where the 29 bytes of its Date begin (RFC 9110 5.6.7); 0: it has none */
};

/* Milliseconds and limits: 0 means none, unless said otherwise. */
struct urs_reactor_options {
    uint32_t ring_entries;
    uint32_t receive_buffers;
    size_t receive_buffer_bytes;
    uint8_t *pool_memory;                /* urs_pool_bytes of it; the caller's */
    uint8_t *verdicts;                   /* URS_EVENTS_MAX bytes, the caller's: 1 at an event's index echoes it */
    uint32_t *handled;                   /* one number, the caller's: how many of the turn's events it has handled */
    struct urs_answer refusals[6];       /* by enum urs_refusal; memory of the caller's, until close */
    struct urs_engine_rules rules;
    uint64_t backlog_bytes_max;          /* never 0 */
    uint64_t backlog_high_bytes;
    uint64_t backlog_low_bytes;
    uint64_t memory_bytes_max;
    uint32_t on_full;                    /* enum urs_on_full */
    uint32_t sessions_max;
    uint32_t sessions_per_ip_max;
    uint32_t handshakes_max;
    uint32_t header_bytes_max;           /* never 0 */
    uint32_t session_turn_bytes_max;     /* never 0 */
    uint32_t session_turn_messages_max;  /* 1 to URS_MESSAGES_MAX */
    uint32_t handshake_ms;
    uint32_t silent_ms;                  /* after that a silent connection gives way at handshakes_max; 0: never */
    uint32_t idle_ms;
    uint32_t ping_interval_ms;
    uint32_t ping_timeout_ms;
    uint32_t close_ms;
    uint32_t session_ms;
    uint32_t busy_poll_us;
    uint32_t zero_copy;                  /* enum urs_zero_copy */
    uint32_t zero_copy_bytes_min;        /* of a segment */
    bool proxy_protocol;                 /* a request may follow a PROXY header */
    bool tcp_nodelay;                    /* of adopted sockets; accepted ones inherit it from their listener */
};

enum urs_reactor_limit {
    URS_EVENTS_MAX = 8192,               /* of one turn */
    URS_MESSAGES_MAX = 4096              /* of one turn; the rest of the events are room for all else */
};

/* Counters since open, and the present state. */
struct urs_reactor_stats {
    uint64_t accepted;
    uint64_t refused[6];                 /* by enum urs_refusal */
    uint64_t messages_in;
    uint64_t messages_out;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t drops;
    uint64_t enobufs_parks;
    uint64_t cq_overflows;
    uint64_t enters;
    uint64_t turns;
    uint64_t events;
    uint64_t sends_short;
    uint64_t sends_direct;
    uint64_t zero_copy_sends;
    uint64_t zero_copy_copied;
    uint64_t pings_sent;
    uint64_t pongs_received;
    uint64_t accept_pauses;
    uint64_t evictions;
    uint64_t timeouts;
    uint64_t queued_bytes;               /* now, in all backlogs */
    uint64_t memory_bytes;               /* now, of the budget */
    uint32_t sessions;                   /* now, in any state */
    uint32_t sessions_most;
    uint32_t handshakes;                 /* now, upgrades in progress */
    uint32_t pool_buffers;
    uint32_t pool_in_use;
    uint32_t pool_in_use_most;
};

struct urs_reactor;

/* Makes a reactor on the backend of that name ("io_uring" or "epoll"). NULL on failure: *report says why. */
struct urs_reactor *urs_reactor_open(const char *backend, const struct urs_reactor_options *options,
                                     struct urs_io_report *report);

/* Closes every session's descriptor and frees everything. Listening sockets stay their owners'. */
void urs_reactor_close(struct urs_reactor *reactor);

/* Binds the reactor to the calling thread. Returns 0, also when that is done already, or -errno: then it may be
 * called again. */
int urs_reactor_start(struct urs_reactor *reactor);

/* Binds it to the calling thread, whose part is to close it: the thread that started it has ended. */
void urs_reactor_take(struct urs_reactor *reactor);

/* Accepts from a listening socket, which stays the caller's and must stay open. epoll makes it non-blocking, for
 * all who share it. Returns its index or -errno. */
int urs_reactor_listen(struct urs_reactor *reactor, int fd, bool local);

/* Ends all accepting. */
void urs_reactor_stop_listening(struct urs_reactor *reactor);

/* One turn: carries out what was asked since the last one, then waits until there is something for Python, at most
 * `timeout_ms` (negative: without end). While options.handled is less than the number of events that the last turn
 * returned, it does nothing but return that number again: no event is lost where an exception kept Python from it. A
 * turn that is done sets options.handled to 0. With `echo` messages are sent back without Python. Returns the number
 * of events (0 also on time-out and wake-up), -EINTR where a signal came first, or -errno for a backend that is beyond
 * use. Event i's target is its session's slot for a message (or frame), URS_TARGET_OTHER for all else. */
int urs_reactor_turn(struct urs_reactor *reactor, int64_t timeout_ms, bool echo);

struct urs_event *urs_reactor_events(struct urs_reactor *reactor);

/* Columns of the messages among the events: where the payload begins in the pool's memory (UINT32_MAX: it lies in the
 * event's block), its bytes, its opcode. */
struct urs_event_columns {
    int32_t *targets;
    uint32_t *offsets;
    uint32_t *lengths;
    uint8_t *opcodes;
};
struct urs_event_columns urs_reactor_columns(struct urs_reactor *reactor);

/* This process is a fork's child: from now on every call but close fails with URS_ERROR_FORKED. close leaves the
 * parent's sockets and ring alone, and frees next to nothing: the fork may have come in the middle of a turn. */
void urs_reactor_forked(struct urs_reactor *reactor);

/* Makes the turn in progress, or the next, return. From any thread. */
void urs_reactor_wake(struct urs_reactor *reactor);
int urs_reactor_wake_descriptor(struct urs_reactor *reactor);

/* Takes over a connected socket whose upgrade is done; the session is open at once. `prefix` are bytes already read
 * from it. Returns 0 with *id set, or a negative result with the descriptor still the caller's. */
int urs_reactor_adopt(struct urs_reactor *reactor, int fd, const uint8_t *prefix, size_t prefix_bytes, uint64_t *id);

/* Refuses new connections and pending handshakes, those that have not sent a byte without an answer; open sessions get a
 * close frame, after all that events before `index` owe (as for urs_session_close). */
void urs_reactor_drain(struct urs_reactor *reactor, uint32_t index, unsigned code);

/* Sessions whose close frame has left and whose input, perhaps the answer, has arrived but is not read yet. */
uint32_t urs_reactor_unread(struct urs_reactor *reactor);

/* Ends every session at once. */
void urs_reactor_cut(struct urs_reactor *reactor);

void urs_reactor_read_stats(struct urs_reactor *reactor, struct urs_reactor_stats *stats);

/* Sessions in any state, those that are ending included. */
uint32_t urs_reactor_sessions(const struct urs_reactor *reactor);

/* The id of the session in a slot. */
uint64_t urs_reactor_id(struct urs_reactor *reactor, uint32_t slot);

/* Answers a request with 101 (the session is open) or with anything else (it is flushed and closed). */
int urs_session_accept(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes);
int urs_session_reject(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes);

/* Queues a frame. `index` is the event being handled: what events before it owe goes first. Returns an
 * urs_send_outcome, URS_ERROR_STALE, URS_ERROR_CLOSING, URS_ERROR_FULL (on_full error) or -ENOMEM. */
int urs_session_send(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode, const uint8_t *data,
                     size_t bytes);

/* The same with the payload of event `index` itself, and with its opcode where `opcode` is 0. URS_ERROR_STATE if that
 * event is no message, has been applied already, or is the continuation of one and `opcode` is 0. */
int urs_session_send_event(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode);

/* Sends a close frame, after all that events before `index` owe. The last of these may be the message being handled: its
 * payload stays as it is until the next turn. Returns 0 or a negative result. */
int urs_session_close(struct urs_reactor *reactor, uint64_t id, uint32_t index, unsigned code, const uint8_t *reason,
                      size_t bytes);

/* Ends the session without a close frame. */
int urs_session_abort(struct urs_reactor *reactor, uint64_t id);

int urs_session_pause(struct urs_reactor *reactor, uint64_t id);
int urs_session_resume(struct urs_reactor *reactor, uint64_t id);

/* Bytes that wait for the socket to take them, or URS_ERROR_STALE. */
int64_t urs_session_buffered(struct urs_reactor *reactor, uint64_t id);

/* Seconds between the last ping and its pong; -1: none yet, or the session is gone. A lower number is an urs_error. */
double urs_session_latency(struct urs_reactor *reactor, uint64_t id);

/* The descriptor, or URS_ERROR_STALE. It stays the reactor's. */
int urs_session_descriptor(struct urs_reactor *reactor, uint64_t id);

/* Where it comes from. Returns 0 or URS_ERROR_STALE. */
int urs_session_peer(struct urs_reactor *reactor, uint64_t id, struct urs_peer *peer);

/* A trusted PROXY header (`peer`) or its absence (NULL) settled where the session comes from: counts it for that
 * address, in place of the one it was counted for before. Only where options.proxy_protocol is set. Returns 0, URS_ERROR_LIMIT or
 * URS_ERROR_STALE. */
int urs_session_settle_peer(struct urs_reactor *reactor, uint64_t id, const struct urs_peer *peer);

/* The session's state, URS_SESSION_FREE if it is gone; never URS_SESSION_OPEN if nothing can be sent any more. Or
 * URS_ERROR_THREAD or URS_ERROR_FORKED. */
int urs_session_state(struct urs_reactor *reactor, uint64_t id);

/* cdef: end */

#endif
