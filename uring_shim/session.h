/* The sessions of one reactor: slots with generations, each session's state, its backlog (bytes the socket would not
 * take) and its held input (bytes not yet given to the engine). Lists and counts only: no I/O, no policy. */
#ifndef URS_SESSION_H
#define URS_SESSION_H

#include <sys/uio.h>

#include "base.h"
#include "block.h"
#include "engine.h"
#include "outbound.h"

/* cdef: begin */

/* Each state is named by what is awaited. */
enum urs_session_state {
    URS_SESSION_FREE = 0,
    URS_SESSION_AWAIT_HEAD = 1,          /* the rest of the opening request */
    URS_SESSION_AWAIT_VERDICT = 2,       /* Python's answer to the request */
    URS_SESSION_OPEN = 3,                /* messages */
    URS_SESSION_AWAIT_CLOSE = 4,         /* our close frame is out: the peer's */
    URS_SESSION_AWAIT_FLUSH = 5,         /* nothing may follow: the socket to take the rest */
    URS_SESSION_AWAIT_END = 6,           /* our side is shut down: the end of the peer's stream */
    URS_SESSION_AWAIT_REQUESTS = 7       /* both sides are shut down: the last completions */
};

/* Where a session comes from. An IPv4 address is never written as IPv6 (::ffff:a.b.c.d, RFC 4291 2.5.5.2). */
struct urs_peer {
    uint8_t address[16];                 /* the first 4 for IPv4 */
    uint16_t port;
    uint8_t family;                      /* 4, 6, or 0 for a Unix socket and where it is not known */
};

/* cdef: end */

struct urs_session {
    struct urs_engine engine;
    struct urs_outbound outbound;        /* this turn's segments */
    struct urs_block *backlog;           /* oldest first, linked by next */
    struct urs_block *backlog_last;
    size_t backlog_bytes;
    struct urs_block *held;              /* input that came, but may not be fed yet */
    struct urs_block *pong;              /* the last frame of its kind in the backlog, see urs_session_store_pong */
    union {
        uint64_t ping_sent_us;           /* open: when the ping was made that awaits its pong; 0: none does */
        struct {                         /* silent: slot + 1 of the neighbours on the reactor's list; 0 at its ends */
            uint32_t silent_next;
            uint32_t silent_previous;
        };
    };
    float latency_seconds;               /* of the last pong; negative: none yet */
    int fd;
    uint32_t slot;
    uint32_t generation;                 /* odd while in use; its low 24 bits go with each request */
    uint32_t next_slot;                  /* slot + 1 of the next free slot, or of the next session in its queue */
    uint32_t sent_bytes;                 /* the socket has taken: a position in the stream, modulo 2^32 */
    uint32_t acked_bytes;                /* the position up to which the peer had them at the last look */
    uint32_t question_bytes;             /* the position after what the peer must answer: a ping, a close frame, the end */
    uint32_t offered;                    /* bytes of the send that has not completed yet */
    uint32_t last_input_ms;              /* all _ms: the reactor's clock, modulo 2^32 */
    uint32_t opened_ms;
    uint32_t deadline_ms;                /* of the state, where it has one; open: of the pong */
    uint32_t ping_due_ms;
    uint16_t turn;                       /* the turn that the next two count for, modulo 2^16 */
    uint16_t turn_messages;
    uint32_t turn_bytes;
    uint32_t peer_hash;                  /* of the address, for sessions_per_ip_max; 0: not counted */
    struct urs_peer peer;
    uint16_t failed_code;                /* the close code we failed it with; 0: we did not */
    uint8_t state;                       /* enum urs_session_state */
    uint8_t pongs;                       /* that joined the backlog since it was last seen empty */
    uint8_t late_events;                 /* that name it and are the next turn's: at most LATE_EVENTS */
    bool has_deadline : 1;
    bool question_unsent : 1;            /* the socket has not taken all up to question_bytes yet */
    bool question_queued : 1;            /* other bytes are in front of it: look how far the peer is */
    bool taken : 1;                      /* a look found progress since idleness was last judged */
    bool reprieved : 1;                  /* the deadline has passed, but input waited to be read */
    bool unread : 1;                     /* while deadlines are judged: a completion with its input is not handled yet */
    bool unsure : 1;                     /* since data came nothing was sent: a reset may have been missed */
    bool silent : 1;                     /* on the reactor's list of those that have not sent a byte yet */
    bool reset : 1;                      /* bytes were thrown away: the end must not look like a complete stream */
    bool receiving;                      /* a receive is armed, or its last completion is still to come */
    bool stopping;                       /* that last completion was asked for */
    bool polling;                        /* a WRITABLE is to come */
    bool sending;                        /* a send of this turn has not completed yet */
    bool sent_backlog;                   /* ... and it was from the backlog */
    bool copied;                         /* the kernel copied a zero-copy send: no more of them under "auto" */
    bool dirty;                          /* on the reactor's list of sessions to flush */
    bool ready;                          /* on the list of sessions with held input to feed */
    bool parked;                         /* in a queue of those that wait for a receive buffer */
    bool heavy;                          /* its last receive brought much */
    bool delayed;                        /* on the list of those to be armed or flushed after a pause */
    bool paused;                         /* Python paused reading */
    bool choked;                         /* the backlog is high and nobody else would stop the input (run_echo) */
    bool above_high;                     /* that much waited when it was sent to, or looked at; on_drain is owed */
    bool drain_told;                     /* ... and on its way */
    bool input_ended;                    /* the peer's end of stream was seen */
    bool lost;                           /* the socket is of no more use */
    bool told;                           /* URS_EVENT_LOST was given */
    bool local;                          /* AF_UNIX: receive one at a time (multishot loses the end of stream) */
};

struct urs_sessions {
    struct urs_session **slabs;
    uint32_t slab_count;
    uint32_t slots;                      /* ever used */
    uint32_t free_first;                 /* slot + 1 */
    uint32_t in_use;
    uint32_t in_use_max;
};

enum { URS_SLAB_SESSIONS_LOG2 = 8, URS_SLAB_SESSIONS = 1 << URS_SLAB_SESSIONS_LOG2 };

static inline struct urs_session *urs_session_at(const struct urs_sessions *sessions, uint32_t slot)
{
    return &sessions->slabs[slot >> URS_SLAB_SESSIONS_LOG2][slot & (URS_SLAB_SESSIONS - 1)];
}

/* The session with that id, or NULL if it is gone. */
struct urs_session *urs_session_find(const struct urs_sessions *sessions, uint64_t id);

static inline uint64_t urs_session_id(const struct urs_session *session)
{
    return (uint64_t)session->generation << 32 | session->slot;
}

/* A free slot made a session of that socket; NULL without memory. */
struct urs_session *urs_session_new(struct urs_sessions *sessions, int fd);

/* Frees what the session holds, and its slot. The descriptor must be closed already. No id is ever given twice: a slot
 * that has had 2^31 sessions stays free for good. */
void urs_session_free(struct urs_sessions *sessions, struct urs_session *session);

void urs_sessions_close(struct urs_sessions *sessions);

/* Moves the session to a state that may follow its present one; session.c has the table of what may follow what. */
void urs_session_set_state(struct urs_session *session, enum urs_session_state state);

/* Moves this turn's segments, from byte `from` of them on, behind the backlog: whole blocks of their own by
 * reference, all else as a copy. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM; the list is empty afterwards. */
int urs_session_store(struct urs_session *session, struct urs_outbox *outbox, struct urs_memory *memory, size_t from);

/* Puts the pong of the latest ping into the backlog: in the place of the last one that was put there, or at the end if
 * the socket has taken some of that one. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM. */
int urs_session_store_pong(struct urs_session *session, struct urs_memory *memory, const uint8_t *payload,
                           size_t bytes);

/* Describes the first bytes of the backlog in at most `room` vectors; returns how many it took. */
uint32_t urs_session_backlog_vectors(const struct urs_session *session, struct iovec *vectors, uint32_t room);

/* Drops `bytes` bytes from the front of the backlog. */
void urs_session_backlog_consume(struct urs_session *session, size_t bytes);

/* Appends input that cannot be fed now. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM. */
int urs_session_hold(struct urs_session *session, struct urs_memory *memory, const uint8_t *data, size_t bytes);

/* Bytes of the budget that the session's end would free. Takes time with the number of blocks in the backlog. */
size_t urs_session_memory_bytes(const struct urs_session *session);

/* Frees backlog, held input and a message begun. */
void urs_session_drop_memory(struct urs_session *session);

#endif
