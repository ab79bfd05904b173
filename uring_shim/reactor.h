/* The reactor as Python sees it: one thread, one I/O backend, many sessions. Python calls urs_reactor_turn, reads the
 * events that it returns, answers through the urs_session_* calls, and calls again. Once a thread has called
 * urs_reactor_start, only that thread may call these functions, except urs_reactor_wake; other threads get
 * URS_ERROR_THREAD. An id is generation << 32 | slot; the id of a session that is gone gives URS_ERROR_STALE. */
#ifndef URS_REACTOR_H
#define URS_REACTOR_H

#include "engine.h"
#include "io.h"
#include "rules.h"
#include "session.h"

/* cdef: begin */

enum urs_zero_copy { URS_ZERO_COPY_NEVER = 0, URS_ZERO_COPY_AUTO = 1, URS_ZERO_COPY_ALWAYS = 2 };

enum urs_send_outcome { URS_SENT = 0, URS_QUEUED = 1, URS_DROPPED = 2 };

/* Kinds of events in addition to enum urs_item_kind. */
enum urs_event_kind {
    URS_EVENT_UPGRADE = 16,              /* the payload is a request's head; error: 0, TOO_BIG or REQUEST; count: the
                                            index of the listener that accepted the connection */
    URS_EVENT_LOST = 17,                 /* the session ends without a close frame from the peer; error: 0 (end of
                                            stream), -errno, or an urs_error */
    URS_EVENT_DRAIN = 18,                /* the backlog fell to the low water mark */
    URS_EVENT_DROP = 20,                 /* messages of topics were dropped for the session: urs_fanout_take_drop */
    URS_EVENT_ABANDONED = 19             /* the shim refused a request that Python has not answered: too late, or in a
                                            drain */
};

/* The target of every event that is not a message. */
enum urs_event_target { URS_TARGET_OTHER = -1 };

struct urs_event {
    struct urs_item item;
    uint32_t slot;
};

/* The settings that all sessions share; rules.h has the others. Milliseconds and limits: 0 means no limit, unless a
 * comment says otherwise. */
struct urs_reactor_options {
    uint32_t ring_entries;
    uint32_t receive_buffers;
    size_t receive_buffer_bytes;
    uint8_t *pool_memory;                /* urs_pool_bytes bytes; owned by the caller */
    uint8_t *echo_flags;                 /* URS_EVENTS_MAX bytes, owned by the caller: 1 at an event's index echoes that
                                            event */
    uint32_t *handled;                   /* one number, owned by the caller: how many events of the turn it has
                                            handled */
    uint64_t memory_bytes_max;
    uint32_t sessions_max;
    uint32_t sessions_per_ip_max;
    uint32_t handshakes_max;
    uint32_t silent_ms;                  /* after this time a silent connection may be ended to make room at
                                            handshakes_max; 0: never */
    uint32_t busy_poll_us;
    uint32_t batch_wait_us;              /* how long receives may gather before a turn takes them; 0 takes the first */
    uint32_t batch_messages_max;         /* this many receives end that time; never 0 */
    uint32_t zero_copy;                  /* enum urs_zero_copy */
    uint32_t fanout_turn_max;            /* never 0: the most sessions that published messages are sent to in a turn,
                                            apart from sessions that have something else to send */
    uint32_t zero_copy_bytes_min;        /* the least size of a segment for a zero-copy send */
};

enum urs_reactor_limit {
    URS_EARLY_BYTES_MAX = 65536,         /* per session, of input that follows a request which is not answered yet */
    URS_EVENTS_MAX = 8192,               /* per turn */
    URS_MESSAGES_MAX = 4096              /* per turn; the other URS_EVENTS_MAX - URS_MESSAGES_MAX entries are reserved
                                            for other events */
};

/* Counters since open, and the present state. The fields marked "now" are the present state. */
struct urs_reactor_stats {
    uint64_t accepted;
    uint64_t refused[6];                 /* by enum urs_refusal */
    uint64_t messages_in;
    uint64_t messages_out;
    uint64_t messages_inflated;          /* of messages_in */
    uint64_t messages_deflated;          /* of messages_out */
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
    uint64_t memory_bytes;               /* now, charged to the budget */
    uint32_t sessions;                   /* now, in any state */
    uint32_t sessions_most;
    uint32_t handshakes;                 /* now, upgrades in progress */
    uint32_t pool_buffers;
    uint32_t pool_in_use;
    uint32_t pool_in_use_most;
};

struct urs_reactor;

/* Opens a reactor on the named backend ("io_uring" or "epoll"). `rules` become the set with index 0. Returns NULL on
 * failure: *report then tells why. */
struct urs_reactor *urs_reactor_open(const char *backend, const struct urs_reactor_options *options,
                                     const struct urs_rules *rules, struct urs_io_report *report);

/* Adds a set of rules for listening sockets and adopted sessions. Returns its index, URS_ERROR_LIMIT if the reactor has
 * URS_RULES_MAX sets, or another negative result. */
int urs_reactor_add_rules(struct urs_reactor *reactor, const struct urs_rules *rules);

/* Closes the descriptor of every session and frees everything. Listening sockets stay open: their owners close them. */
void urs_reactor_close(struct urs_reactor *reactor);

/* Binds the reactor to the calling thread. Returns 0, also if the reactor is bound to this thread already, or -errno:
 * the caller may then call again. */
int urs_reactor_start(struct urs_reactor *reactor);

/* Binds the reactor to the calling thread, which must only close it. Used when the thread that started the reactor has
 * ended. */
void urs_reactor_take(struct urs_reactor *reactor);

/* Accepts connections from a listening socket; they are served by the set of rules with the index `rules`. The caller
 * keeps the socket and must keep it open. The epoll backend makes it non-blocking, for every process that shares it.
 * Returns the index of the listener, or -errno. The index of a listener on which urs_reactor_unlisten was called may be
 * returned again once every request that it brought is answered. */
int urs_reactor_listen(struct urs_reactor *reactor, int fd, bool is_unix, uint8_t rules);

/* Stops accepting on the listening socket with that index, which its owner may close then. Sessions that it brought
 * stay. Returns 0, URS_ERROR_STALE if that was done already, or another negative result. */
int urs_reactor_unlisten(struct urs_reactor *reactor, uint32_t index);

/* Stops accepting on every listening socket. */
void urs_reactor_stop_listening(struct urs_reactor *reactor);

/* One turn has two halves. The first half ends the last turn; the second half begins the next one. */

/* The first half: applies the calls made since the last turn and the events that were handled, sends, and releases the
 * receive buffers. While options.handled is less than the number of events of the last turn, it does nothing and
 * returns that number again: no event is lost if an exception kept Python from handling it. Otherwise it sets
 * options.handled to 0 and returns 0, or -errno if the backend is unusable. */
int urs_reactor_flush(struct urs_reactor *reactor);

/* The second half: waits for events for Python, at most `timeout_ms` (negative: no limit). With `echo`, messages are
 * sent back without Python. Returns the number of events (0 also on time-out and wake-up), -EINTR if a signal came
 * first, -errno if the backend is unusable, or URS_ERROR_STATE if the last turn was not ended by urs_reactor_flush. Frames
 * that were queued since then are sent with the next flush. The target of event i is the slot of its session for a
 * message (or frame) that may be echoed, and URS_TARGET_OTHER for every other event. */
int urs_reactor_collect(struct urs_reactor *reactor, int64_t timeout_ms, bool echo);

/* Both halves: like urs_reactor_flush, and urs_reactor_collect if that returned 0. But of the sessions that have only
 * published messages to send, at most fanout_turn_max are served per turn. */
int urs_reactor_turn(struct urs_reactor *reactor, int64_t timeout_ms, bool echo);

/* Returns in how many milliseconds the reactor has something to do even if no completion arrives: 0 for now, INT64_MAX
 * for never. A caller that does something else between the two halves must not take longer than that. A negative result
 * is an urs_error. */
int64_t urs_reactor_due_ms(struct urs_reactor *reactor);

/* Returns how many events of the last turn are not handled yet. */
uint32_t urs_reactor_pending(const struct urs_reactor *reactor);

/* Sends what the events handled so far (options.handled) and the calls since then require, without ending the turn: for
 * callers that handle a turn's events in several parts. Returns 0 or -errno. */
int urs_reactor_flush_handled(struct urs_reactor *reactor);

struct urs_event *urs_reactor_events(struct urs_reactor *reactor);

/* Columns of the messages among the events: the offset of the payload in the memory of the pool (UINT32_MAX: the
 * payload lies in the event's block), its bytes, and its opcode. */
struct urs_event_columns {
    int32_t *targets;
    uint32_t *offsets;
    uint32_t *lengths;
    uint8_t *opcodes;
};
struct urs_event_columns urs_reactor_columns(struct urs_reactor *reactor);

/* Marks the reactor in the child of a fork: from now on every call except close fails with URS_ERROR_FORKED. close
 * leaves the sockets and the ring of the parent untouched, and frees almost nothing, because the fork may have come in
 * the middle of a turn. */
void urs_reactor_forked(struct urs_reactor *reactor);

/* Makes the present or the next turn return. Any thread may call it. */
void urs_reactor_wake(struct urs_reactor *reactor);
int urs_reactor_wake_descriptor(struct urs_reactor *reactor);

enum urs_watch_limit { URS_WATCHES_MAX = 1024 };

/* Watches a descriptor that is no session's socket: each turn in which it is readable (`writable`: writable) ends at
 * once, and urs_reactor_take_watches names it. The reactor keeps a duplicate of the descriptor, and so the open file,
 * until the watch ends. Returns 0 with *id set, URS_ERROR_LIMIT at URS_WATCHES_MAX, or -errno. */
int urs_reactor_watch(struct urs_reactor *reactor, int fd, bool writable, uint64_t *id);

/* Ends a watch: urs_reactor_take_watches never names it again. Returns 0, or URS_ERROR_STALE if it has ended. */
int urs_reactor_unwatch(struct urs_reactor *reactor, uint64_t id);

/* Points to the number of ready watches that were not taken yet. Valid until the reactor is closed. */
const uint32_t *urs_reactor_watches_ready(struct urs_reactor *reactor);

/* Copies at most `room` ids of ready watches to `ids`, in the order in which they became ready, and takes them off the
 * list: the next turn looks at their descriptors again. Returns how many. */
uint32_t urs_reactor_take_watches(struct urs_reactor *reactor, uint64_t *ids, uint32_t room);

/* Takes over a connected socket whose upgrade is done; the session is open at once, and is served by the set of rules
 * with the index `rules`. `prefix` holds bytes that were already read from the socket, `deflate_terms` (enum
 * urs_deflate_term) what the upgrade agreed on. Returns 0 with *id set. On a
 * negative result the caller keeps the descriptor. */
int urs_reactor_adopt(struct urs_reactor *reactor, int fd, uint8_t rules, uint16_t deflate_terms, const uint8_t *prefix,
                      size_t prefix_bytes, uint64_t *id);

/* Refuses new connections and pending handshakes; connections that have not sent a byte are ended without an answer.
 * Open sessions get a close frame after the events before `index` are applied (as in urs_command_close). */
void urs_reactor_drain(struct urs_reactor *reactor, uint32_t index, unsigned code);

/* Counts the sessions whose close frame has been sent and whose input, perhaps the peer's close frame, has arrived but
 * has not been read yet. */
uint32_t urs_reactor_unread(struct urs_reactor *reactor);

/* Ends every session at once. */
void urs_reactor_cut(struct urs_reactor *reactor);

void urs_reactor_read_stats(struct urs_reactor *reactor, struct urs_reactor_stats *stats);

/* The number of sessions in any state, including those that are ending. */
uint32_t urs_reactor_sessions(const struct urs_reactor *reactor);

/* Returns the id of the session in a slot. */
uint64_t urs_reactor_id(struct urs_reactor *reactor, uint32_t slot);

/* cdef: end */

#endif
