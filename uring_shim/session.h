/* The sessions of one reactor: slots with generations, and per session the state, the backlog (bytes that the socket
 * did not take, see backlog.h) and the held input (bytes not yet given to the engine). Lists and counts only: no I/O,
 * no policy. */
#ifndef URS_SESSION_H
#define URS_SESSION_H

#include "base.h"
#include "block.h"
#include "chain.h"
#include "engine.h"
#include "outbound.h"

/* cdef: begin */

/* Each state is named by the thing that the session waits for. */
enum urs_session_state {
    URS_SESSION_FREE = 0,
    URS_SESSION_AWAIT_HEAD = 1,          /* the rest of the opening request */
    URS_SESSION_AWAIT_DECISION = 2,      /* Python accepts or rejects the request */
    URS_SESSION_OPEN = 3,                /* messages */
    URS_SESSION_AWAIT_CLOSE = 4,         /* our close frame is queued or sent: the peer's close frame */
    URS_SESSION_AWAIT_FLUSH = 5,         /* nothing more may be queued: the socket must take the rest */
    URS_SESSION_AWAIT_END = 6,           /* our side is shut down: the end of the peer's stream */
    URS_SESSION_AWAIT_REQUESTS = 7       /* both sides are shut down: the last completions of its requests */
};

/* The reasons for which the shim itself sends a close frame. A peer's violation is not one of them: URS_ITEM_FAILED
 * reports it. */
enum urs_failure {
    URS_FAILURE_NONE = 0,
    URS_FAILURE_BACKLOG = 1,             /* backlog_bytes_max, with URS_ON_FULL_CLOSE */
    URS_FAILURE_IDLE = 2,                /* idle_ms */
    URS_FAILURE_AGE = 3,                 /* session_ms */
    URS_FAILURE_MEMORY = 4,              /* memory_bytes_max */
    URS_FAILURE_ORDER = 5,               /* an echo inside a fragmented message, or out of its order */
    URS_FAILURES = 6
};

/* The contents of a close frame. */
struct urs_close {
    uint16_t code;
    const char *reason;                  /* static text of at most 123 bytes */
};

/* The address of a session's peer. An IPv4 address is never stored as IPv6 (::ffff:a.b.c.d, RFC 4291 2.5.5.2). */
struct urs_peer {
    uint8_t address[16];                 /* the first 4 for IPv4 */
    uint16_t port;
    uint8_t family;                      /* 4, 6, or 0 for a Unix socket or an unknown address */
};

/* Returns the close frame of a failure. */
struct urs_close urs_failure_close(enum urs_failure failure);

/* cdef: end */

#define URS_NO_LISTENER UINT32_MAX       /* of an adopted session */

enum urs_receive_state {
    URS_RECEIVE_IDLE = 0,                /* none is armed: no input is wanted */
    URS_RECEIVE_ARMED = 1,
    URS_RECEIVE_CANCELLING = 2,          /* a cancel was submitted; the last completion is still to come */
    URS_RECEIVE_AWAITS_BUFFER = 3,       /* in one of the queues of intake.c, because receive buffers are short */
    URS_RECEIVE_AWAITS_RETRY = 4         /* on the list of retries, because the system lacked memory */
};

enum urs_send_state {
    URS_SEND_IDLE = 0,                   /* a flush may send */
    URS_SEND_SEGMENTS = 1,               /* a send of the turn's segments has not completed yet */
    URS_SEND_BACKLOG = 2,                /* a send of the backlog has not completed yet */
    URS_SEND_AWAITS_WRITABLE = 3,        /* the socket is full; URS_IO_WRITABLE is still to come */
    URS_SEND_AWAITS_RETRY = 4            /* on the list of retries, because the system lacked memory */
};

enum urs_socket_state {
    URS_SOCKET_USABLE = 0,
    URS_SOCKET_END_REPORTED = 1,         /* URS_EVENT_LOST was queued, for the end of the peer's stream or for an
                                            eviction; the socket may still send */
    URS_SOCKET_LOST = 2                  /* nothing is sent or received any more. URS_EVENT_LOST was queued, unless the
                                            session ended without it */
};

/* The lists of the reactor, one bit each. A session is on each list at most once. */
enum urs_list {
    URS_LIST_DIRTY = 1,                  /* it has something to flush */
    URS_LIST_FEED = 2,                   /* it has held input to feed */
    URS_LIST_RETRIES = 4,                /* its receive or its send awaits a retry */
    URS_LIST_BUFFERS = 8,                /* it waits for a receive buffer, in one of the two queues of intake.c */
    URS_LIST_SILENT = 16,                /* it has not sent a byte yet */
    URS_LIST_FANOUT = 32,                /* it has published messages to send, which may wait for a later turn */
    URS_LIST_DEAD = 64                   /* it has ended, and is freed once it is on no other list */
};

/* The reasons for which the engine takes no input of an open session, one bit each. */
enum urs_input_stop {
    URS_STOPPED_BY_PYTHON = 1,           /* Python paused reading */
    URS_STOPPED_BY_BACKLOG = 2           /* run_echo stopped reading because the backlog reached the high mark */
};

struct urs_session {
    struct urs_engine engine;
    struct urs_outbound outbound;        /* the segments of this turn */
    struct urs_chain backlog;            /* no chain has an empty slice: there is a backlog if it has bytes */
    struct urs_slice held;               /* input that arrived but may not be fed yet */
    struct urs_memberships *memberships; /* the topics that it is a member of, see topics.h; NULL: none */
    uint32_t pong;                       /* if pong_waits: the number in the chain of the pong that
                                            urs_backlog_store_pong may replace */
    float latency_seconds;               /* of the last pong; negative: none yet */
    union {
        uint64_t ping_sent_us;           /* open: when the ping that awaits its pong was made; 0: no ping does */
        struct {                         /* on URS_LIST_SILENT: slot + 1 of the neighbours on the list; 0 at its ends */
            uint32_t silent_next;
            uint32_t silent_previous;
        };
    };
    int fd;
    uint32_t slot;
    uint32_t generation;                 /* odd while in use; each request carries its low 24 bits */
    uint32_t next_slot;                  /* slot + 1 of the next free slot, or of the next session in its queue */
    uint32_t sent_bytes;                 /* bytes that the socket has taken: a position in the stream, modulo 2^32 */
    uint32_t acked_bytes;                /* the position that the peer had acknowledged when it was last checked */
    uint32_t question_bytes;             /* the position after the ping, close frame or end of stream that the peer must
                                            answer */
    uint32_t in_flight_bytes;            /* bytes of the send that has not completed yet */
    uint32_t last_input_ms;              /* all _ms fields: the reactor's clock, modulo 2^32 */
    uint32_t opened_ms;
    uint32_t deadline_ms;                /* of the current state, if it has one; open: of the pong */
    union {
        uint32_t ping_due_ms;            /* open */
        uint32_t listener;               /* before: the index of the listener that accepted the session, or
                                            URS_NO_LISTENER */
    };
    uint16_t turn;                       /* the turn that the next two fields count for, modulo 2^16 */
    uint16_t turn_messages;
    uint32_t turn_bytes;
    uint32_t peer_hash;                  /* hash of the address, for sessions_per_ip_max; 0: not counted */
    struct urs_peer peer;
    uint8_t failure;                     /* enum urs_failure */
    uint8_t state;                       /* enum urs_session_state */
    uint8_t pongs;                       /* pongs added to the backlog since it was last found empty */
    uint8_t rules;                       /* the index of its rules in the reactor's table */
    uint8_t late_events;                 /* events of the next turn that name this session: at most LATE_EVENTS */
    bool has_deadline : 1;
    bool unfinished : 1;                 /* the last data frame that was sent has no FIN: a continuation must follow */
    bool question_unsent : 1;            /* the socket has not taken every byte up to question_bytes yet */
    bool question_queued : 1;            /* other bytes are in front of question_bytes: check the peer's progress */
    bool taken : 1;                      /* the peer took bytes of a backlog since idleness was last judged */
    bool reprieved : 1;                  /* the deadline has passed, but unread input was waiting */
    bool unread : 1;                     /* set while deadlines are judged: a completion with its input is not handled
                                            yet */
    bool unsure : 1;                     /* data came and nothing was sent since: a receive may have missed a reset */
    bool in_run : 1;                     /* only builds with assertions set it: a member of the open run, see run.h */
    bool pong_waits : 1;
    bool reset : 1;                      /* bytes were discarded: end with a reset, so that the stream does not look
                                            complete */
    bool zero_copy_failed : 1;           /* the kernel copied a zero-copy send (counts with zero_copy "auto"), or
                                            refused one: send plainly from now on */
    bool drain_due : 1;                  /* the high mark was reached when the backlog was last checked: on_drain must
                                            follow */
    bool drain_event_queued : 1;         /* the event for on_drain is queued */
    bool drop_event_queued : 1;          /* the event for on_drop is queued */
    bool input_ended : 1;                /* the peer's end of stream has arrived */
    bool is_unix : 1;                    /* receive one completion at a time (a multishot receive loses the end of the
                                            stream of a Unix socket) */
    uint8_t receive_state;               /* enum urs_receive_state */
    uint8_t send_state;                  /* enum urs_send_state */
    uint8_t socket_state;                /* enum urs_socket_state */
    uint8_t lists;                       /* enum urs_list, or-ed: the lists that the session is on */
    uint8_t input_stopped_by;            /* enum urs_input_stop, or-ed; 0: the engine may take the input */
    bool heavy;                          /* the last receive brought many bytes, see intake.c */
};

struct urs_sessions {
    struct urs_session **slabs;
    uint32_t slab_count;
    uint32_t slots;                      /* the number of slots ever used */
    uint32_t free_first;                 /* slot + 1 */
    uint32_t in_use;
    uint32_t in_use_max;
};

enum { URS_SLAB_SESSIONS_LOG2 = 8, URS_SLAB_SESSIONS = 1 << URS_SLAB_SESSIONS_LOG2 };

static inline struct urs_session *urs_session_at(const struct urs_sessions *sessions, uint32_t slot)
{
    return &sessions->slabs[slot >> URS_SLAB_SESSIONS_LOG2][slot & (URS_SLAB_SESSIONS - 1)];
}

/* Returns the session with that id, or NULL if it is gone. */
struct urs_session *urs_session_find(const struct urs_sessions *sessions, uint64_t id);

static inline uint64_t urs_session_id(const struct urs_session *session)
{
    return (uint64_t)session->generation << 32 | session->slot;
}

/* Takes a free slot for a session on socket `fd`. Returns NULL if there is no memory. */
struct urs_session *urs_session_new(struct urs_sessions *sessions, int fd);

/* Frees everything that the session holds, and its slot. The descriptor must be closed already. No id is ever used
 * twice: a slot that has had 2^31 sessions is not used again. */
void urs_session_free(struct urs_sessions *sessions, struct urs_session *session);

void urs_sessions_close(struct urs_sessions *sessions);

/* Moves the session to a state that may follow its present state; session.c has the table of legal moves. */
void urs_session_set_state(struct urs_session *session, enum urs_session_state state);

/* Returns whether the states may follow each other, for the assertions of the functions below. */
bool urs_receive_may_become(enum urs_receive_state from, enum urs_receive_state to);
bool urs_send_may_become(enum urs_send_state from, enum urs_send_state to);
bool urs_socket_may_become(enum urs_socket_state from, enum urs_socket_state to);

static inline void urs_session_set_receive(struct urs_session *session, enum urs_receive_state state)
{
    URS_ASSERT(urs_receive_may_become((enum urs_receive_state)session->receive_state, state));
    session->receive_state = (uint8_t)state;
}

static inline void urs_session_set_send(struct urs_session *session, enum urs_send_state state)
{
    URS_ASSERT(urs_send_may_become((enum urs_send_state)session->send_state, state));
    session->send_state = (uint8_t)state;
}

static inline void urs_session_set_socket(struct urs_session *session, enum urs_socket_state state)
{
    URS_ASSERT(urs_socket_may_become((enum urs_socket_state)session->socket_state, state));
    session->socket_state = (uint8_t)state;
}

/* Returns true if the socket of the session is unusable. */
static inline bool urs_session_is_lost(const struct urs_session *session)
{
    return session->socket_state == URS_SOCKET_LOST;
}

/* Returns true if the session may send and receive messages. */
static inline bool urs_session_is_open(const struct urs_session *session)
{
    return session->state == URS_SESSION_OPEN && !urs_session_is_lost(session);
}

/* Returns true if a receive is armed, or its last completion is still to come. */
static inline bool urs_session_is_receiving(const struct urs_session *session)
{
    return session->receive_state == URS_RECEIVE_ARMED || session->receive_state == URS_RECEIVE_CANCELLING;
}

/* Returns true if a send has not completed yet. Between two flushes none is. */
static inline bool urs_session_is_sending(const struct urs_session *session)
{
    return session->send_state == URS_SEND_SEGMENTS || session->send_state == URS_SEND_BACKLOG;
}

static inline bool urs_session_is_on(const struct urs_session *session, enum urs_list list)
{
    return (session->lists & list) != 0;
}

/* Marks the session as added to a list, or as removed from it. The caller changes the list itself. */
static inline void urs_session_join(struct urs_session *session, enum urs_list list)
{
    URS_ASSERT(session->state != URS_SESSION_FREE && !urs_session_is_on(session, list));
    session->lists = (uint8_t)(session->lists | list);
}

static inline void urs_session_leave(struct urs_session *session, enum urs_list list)
{
    URS_ASSERT(urs_session_is_on(session, list));
    session->lists = (uint8_t)(session->lists & ~(unsigned)list);
}

static inline bool urs_session_is_paused(const struct urs_session *session)
{
    return (session->input_stopped_by & URS_STOPPED_BY_PYTHON) != 0;
}

/* Appends input that cannot be fed now. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM. */
int urs_session_hold(struct urs_session *session, struct urs_memory *memory, const uint8_t *data, size_t bytes);

/* Returns what the end of the session would do for the budget. The time grows with the number of slices in the
 * backlog. */
struct urs_holding urs_session_holding(const struct urs_session *session);

/* Frees the backlog, the held input and an unfinished message. */
void urs_session_drop_memory(struct urs_session *session);

#endif
