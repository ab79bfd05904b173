/* The reactor's insides, shared by turn.c (the hot path), zero_copy.c, admission.c and lifecycle.c (how sessions
 * begin and end) and reactor.c (what Python calls). */
#ifndef URS_CORE_H
#define URS_CORE_H

#include "base.h"
#include "block.h"
#include "engine.h"
#include "io.h"
#include "outbound.h"
#include "pool.h"
#include "reactor.h"
#include "session.h"
#include "wheel.h"

enum {
    URS_COMPLETIONS = 512,               /* taken from the backend at a time, to begin with */
    URS_COMPLETIONS_SPARE = 64,          /* of that, kept free for those that come among the completions of sends */
    URS_ARENA_FLUSH_BYTES = 1 << 20,     /* more than this of handlers' sends is flushed before the turn ends */
    URS_PONGS_WAITING_MAX = 16,          /* in a backlog; of the pings that come then only the latest is answered */
    URS_CONTROL_RESERVE_BYTES = 4096,    /* of a backlog: for pings, pongs and close frames alone */
    URS_RESETS_MS = 200,                 /* from data that nothing answers to the look for a reset */
    URS_DELAY_MS = 50                    /* the pause after a shortage of the system's */
};

/* Bytes that a zero-copy send has lent to the kernel: a receive buffer, or a block. */
struct urs_loan {
    struct urs_block *block;             /* its reference; NULL for a buffer of the pool */
    uint64_t id;                         /* the session's */
    uint32_t next_free;                  /* token + 1, while free */
    uint16_t buffer;
    bool sending;                        /* its URS_IO_SEND_ZC is still to come */
};

/* Who gives a receive buffer back to the pool. */
enum urs_lent {
    URS_LENT_NOT = 0,                    /* the end of its turn */
    URS_LENT_IN_TURN = 1,                /* so too, should the kernel return it before */
    URS_LENT_BEYOND = 2                  /* its turn has ended: the kernel's return */
};

/* Slots of sessions, each at most once (the session has a flag for it); there is always room for all. */
struct urs_slots {
    uint32_t *slots;
    uint32_t count;
};

/* A queue of session slots, linked by next_slot. A session stands in one queue at most, and has a flag for it. */
struct urs_queue {
    uint32_t first;                      /* slot + 1; of no meaning while the queue is empty, as is last */
    uint32_t last;
    uint32_t count;
};

struct urs_listener {
    int fd;
    bool armed;
    bool local;                          /* AF_UNIX */
};

struct urs_reactor {
    struct urs_io *io;
    struct urs_pool pool;
    struct urs_outbox outbox;
    struct urs_memory memory;
    struct urs_sessions sessions;
    struct urs_wheel wheel;
    struct urs_reactor_options options;

    struct urs_event *events;            /* URS_EVENTS_MAX */
    int32_t *targets;                    /* columns of the events, for Python to read in one go */
    uint32_t *offsets;
    uint32_t *lengths;
    uint8_t *opcodes;
    uint32_t event_count;
    uint32_t applied;                    /* events before this one are carried out */
    uint32_t visible;                    /* events that Python has to look at */
    struct urs_event *late;              /* found while Python handles events: the next turn's first */
    uint32_t late_count;
    uint32_t late_room;

    struct urs_completion *completions;  /* those not yet dispatched */
    uint32_t completion_room;
    uint32_t completion_next;
    uint32_t completion_count;
    uint16_t *used_buffers;              /* released when the turn's sends have completed */
    uint32_t used_count;
    struct iovec *vectors;               /* of the sends not yet submitted */
    uint32_t vector_count;

    struct urs_loan *loans;              /* a quarter as many as receive buffers; NULL without zero copy */
    uint32_t loan_free;                  /* token + 1 */
    uint8_t *lent;                       /* by receive buffer: enum urs_lent */

    struct urs_slots dirty;              /* to be flushed */
    struct urs_slots ready;              /* with held input to be fed */
    struct urs_queue lively;             /* waiting for a receive buffer, see intake.c */
    struct urs_queue heavy;
    struct urs_slots delayed;            /* to be armed or flushed after a pause */
    struct urs_slots dead;               /* to be freed when no event refers to them */
    uint32_t slots_room;
    uint32_t silent_first;               /* slot + 1 of the oldest session that has not sent a byte; 0: none */
    uint32_t silent_last;
    uint32_t silent_turn;                /* the turn in which completions were last searched for their first bytes */

    struct urs_listener *listeners;
    uint32_t listener_room;
    uint32_t listener_count;
    struct urs_ip_count *ips;            /* sessions by address, open addressing */
    uint32_t ips_room;
    uint32_t ips_used;
    uint64_t ip_key[2];                  /* secret: of the hash by which addresses are counted */

    struct urs_reactor_stats stats;
    uint64_t now_ms;
    uint64_t now_us;
    uint64_t delayed_until_ms;
    uint64_t budget_scan_ms;             /* no earlier look for sessions that must give way */
    uint64_t resets_due_ms;              /* when unsure sessions are looked at; 0: there are none */
    uint32_t resets_slot;                /* the first one to look at then */
    uint64_t short_until_turn;           /* receive buffers count as short until then */
    uint32_t turn;
    uint32_t handshakes;
    uint32_t sends;                      /* submitted or queued, not yet completed */
    uint64_t owner;                      /* once started: urs_thread_number of its thread */
    bool forked;                         /* this process inherited the reactor: hands off */
    bool echo;
    bool started;
    bool draining;
    bool woken;
    bool dispatching;                    /* events may be added to this turn's */
    bool broken;                         /* an event had no room: a fault of the shim's, and no turn is taken any more */
};

enum { URS_VECTORS = 1024 };

static inline struct urs_session *urs_core_session(const struct urs_reactor *reactor, uint32_t slot)
{
    return urs_session_at(&reactor->sessions, slot);
}

static inline void urs_slots_push(struct urs_slots *slots, uint32_t slot) { slots->slots[slots->count++] = slot; }

/* The calling thread's number, which no other thread ever has: its pthread_t is used again once it has ended. 0 until
 * the thread has started a reactor. */
extern _Thread_local uint64_t urs_thread_number;

/* 0 if the calling thread may use the reactor: any before it is started, then its owner. */
static inline int urs_core_check(const struct urs_reactor *reactor)
{
    if (URS_LIKELY(!reactor->started || reactor->owner == urs_thread_number) && !reactor->forked)
        return 0;
    return reactor->forked ? URS_ERROR_FORKED : URS_ERROR_THREAD;
}

/* Whether the engine may have the session's input now. After our close frame it always may: the peer's is awaited. */
static inline bool urs_core_may_feed(const struct urs_session *session)
{
    return session->state == URS_SESSION_AWAIT_CLOSE
        || (session->state == URS_SESSION_OPEN && !session->paused && !session->choked);
}

/* Something is to be tried again after a pause. One that was decided on before stays as it is: were it put off each
 * time, those who wait already would starve. */
static inline void urs_core_pause(struct urs_reactor *reactor)
{
    if (reactor->delayed_until_ms == 0)
        reactor->delayed_until_ms = reactor->now_ms + URS_DELAY_MS;
}

/* turn.c */

/* Puts a session on the list of those that have something to send, or to end. */
void urs_turn_dirty(struct urs_reactor *reactor, struct urs_session *session);

#define URS_NO_EVENT UINT32_MAX

/* Carries out what the events before `until` owe: echoes, pongs, close frames, ends. In wire order. An `until` past the
 * last event stands for those that Python has handled. `in_hand`: the one of them that is a message whose handler has
 * not returned yet, so that its payload must stay as it is; URS_NO_EVENT for none. */
void urs_turn_apply(struct urs_reactor *reactor, uint32_t until, uint32_t in_hand);

/* Sends what is to be sent. Returns 0 or -errno for a backend beyond use. */
int urs_turn_flush(struct urs_reactor *reactor);

/* Gives held input to the engine as soon as the turn has room. */
void urs_turn_ready(struct urs_reactor *reactor, struct urs_session *session);

/* Arms receive if the session wants input and none is armed; asks for its end if it does not. */
void urs_turn_receive(struct urs_reactor *reactor, struct urs_session *session);

/* Asks for the end of the session's receive if one is armed. */
void urs_turn_stop_receiving(struct urs_reactor *reactor, struct urs_session *session);

/* Arms a single receive if the session wants input and none is armed. Returns whether it did. */
bool urs_turn_receive_once(struct urs_reactor *reactor, struct urs_session *session);

/* Adds an event for Python; while Python handles a turn's events, to the next turn's. */
void urs_turn_event(struct urs_reactor *reactor, uint32_t slot, const struct urs_item *item);

void urs_turn_clock(struct urs_reactor *reactor);

/* Collects the completions that are there already, without a system call; dispatch handles them. */
void urs_turn_collect(struct urs_reactor *reactor);

/* intake.c */

/* Sessions that wait for a receive buffer. */
static inline uint32_t urs_intake_waiting(const struct urs_reactor *reactor)
{
    return reactor->lively.count + reactor->heavy.count;
}

static inline uint32_t urs_intake_free_buffers(const struct urs_reactor *reactor)
{
    return reactor->pool.buffers - reactor->pool.in_use;
}

/* Notes that a receive found no buffer. */
void urs_intake_shortage(struct urs_reactor *reactor);

/* Whether sessions that want input have to queue for a buffer: one waits already, or did a few turns ago. */
bool urs_intake_is_short(const struct urs_reactor *reactor);

/* Notes how much the session's last receive brought, which decides in which queue it will wait. */
void urs_intake_measure(const struct urs_reactor *reactor, struct urs_session *session, size_t bytes);

/* Notes that a receive brought data and stays armed: unless something is sent, its socket has to be looked at. */
static inline void urs_intake_doubt(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!reactor->io->operations->misses_resets)
        return;
    session->unsure = true;
    if (reactor->resets_due_ms == 0)
        reactor->resets_due_ms = reactor->now_ms + URS_RESETS_MS;
}

/* Looks for resets that receives have missed, once it is time; those receives end, and the next ones report them. */
void urs_intake_find_resets(struct urs_reactor *reactor);

/* Puts a session without an armed receive at the end of its queue. */
void urs_intake_queue(struct urs_reactor *reactor, struct urs_session *session);

/* Arms sessions that wait, in order, at most as many as there are free buffers. */
void urs_intake_serve(struct urs_reactor *reactor);

/* zero_copy.c */

/* Prepares lending if the backend can and the options want it. Returns 0 or -ENOMEM. */
int urs_zero_copy_open(struct urs_reactor *reactor, bool registered);
void urs_zero_copy_close(struct urs_reactor *reactor);

/* Queues the session's segments as a zero-copy send. Returns 0, -EBUSY as send does, or -ENOTSUP where a plain send is
 * the thing to do. */
int urs_zero_copy_send(struct urs_reactor *reactor, struct urs_session *session);

/* A zero-copy send has completed: returns its session, NULL if that is gone. *refused: nothing was sent, and a plain
 * send is to take its place; the session makes no more zero-copy sends. Without `more` the loan has ended. */
struct urs_session *urs_zero_copy_sent(struct urs_reactor *reactor, const struct urs_completion *completion,
                                       bool *refused);

/* The kernel is done with a loan. */
void urs_zero_copy_release(struct urs_reactor *reactor, const struct urs_completion *completion);

/* admission.c */

/* Chooses the secret by which addresses are counted. The clock must be set. */
void urs_admission_open(struct urs_reactor *reactor);

/* Asks the kernel who the session's peer is. */
void urs_admission_peer(struct urs_session *session);

/* Counts the session for its address; false if that has as many as it may. */
bool urs_admission_count(struct urs_reactor *reactor, struct urs_session *session);

/* Refuses a session whose request is not answered yet: counts it, answers, and ends it once that is sent. */
void urs_admission_refuse(struct urs_reactor *reactor, struct urs_session *session, enum urs_refusal why);

/* One session less for an address, by the hash kept in the session; 0 was not counted. */
void urs_admission_leave(struct urs_reactor *reactor, uint32_t hash);

/* A connection came, or accepting ended: for a while, or for good. */
void urs_admission_accepted(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Takes a session off the list of those that have not sent a byte, if it is on it. */
void urs_admission_spoke(struct urs_reactor *reactor, struct urs_session *session);

/* Arms every listening socket that is to be accepted from and is not armed. */
void urs_admission_arm(struct urs_reactor *reactor);

/* budget.c */

/* Enforces the memory budget: near it, the sessions that hold the most are ended, until the sessions together hold three
 * quarters of it at most. Looks at all sessions at most once a call. */
void urs_budget_enforce(struct urs_reactor *reactor);

/* lifecycle.c */

/* A session for that socket, its lists' room included; NULL without memory. */
struct urs_session *urs_life_new(struct urs_reactor *reactor, int fd, bool local);

/* Bytes of an opening request. */
void urs_life_head(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes);

/* Makes a session with its upgrade done an open one. */
void urs_life_open(struct urs_reactor *reactor, struct urs_session *session);

/* Our close frame, then the peer's is awaited. Returns 0 or -ENOMEM. */
int urs_life_close(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const uint8_t *reason,
                   size_t bytes);

/* The same, for a fault or a limit: the code is reported even if the peer never answers. */
void urs_life_fail(struct urs_reactor *reactor, struct urs_session *session, unsigned code, const char *reason);

/* Nothing more may be sent after what is queued: flush, shut down, wait for the peer's end. */
void urs_life_finish(struct urs_reactor *reactor, struct urs_session *session);

/* Goes on with the end of a session whose last byte was sent. */
void urs_life_flushed(struct urs_reactor *reactor, struct urs_session *session);

/* The socket is of no more use, or the peer's patience: an URS_EVENT_LOST, once. */
void urs_life_lose(struct urs_reactor *reactor, struct urs_session *session, int error);

/* Shuts both sides down and frees the session once its last completions are in. */
void urs_life_end(struct urs_reactor *reactor, struct urs_session *session);

/* A completion came for a session that only awaits its last ones. */
void urs_life_try_free(struct urs_reactor *reactor, struct urs_session *session);

/* deadline.c: every clock of a session. docs/deadlines.md is the table of them. */

/* Sets the deadline of the session's state, `in_ms` from now; 0 means none. */
void urs_deadline_set(struct urs_reactor *reactor, struct urs_session *session, uint32_t in_ms);

/* Sets the deadline of a session that ends: close_ms from now. Where `queued` says that other bytes are in front of
 * what the peer must take or answer, it is set again each time the peer has taken enough of them. */
void urs_deadline_set_ending(struct urs_reactor *reactor, struct urs_session *session, bool queued);

/* The socket has taken the last byte that the session had to send: what waits for its answer starts now. */
void urs_deadline_left(struct urs_reactor *reactor, struct urs_session *session);

/* The socket has taken a part of what an ending session has to send. */
void urs_deadline_left_in_part(struct urs_reactor *reactor, struct urs_session *session);

/* True if bytes wait in the backlog, the segments or the socket. */
bool urs_deadline_is_queued(const struct urs_session *session);

/* The session is open: starts its clocks. */
void urs_deadline_open(struct urs_reactor *reactor, struct urs_session *session);

/* The session is read from again after a pause: restarts the clocks that waited for input. */
void urs_deadline_resumed(struct urs_reactor *reactor, struct urs_session *session);

/* Takes the pong that a client sent. */
void urs_deadline_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item);

/* How many sessions await the peer's close frame, and have input that is not read yet. */
uint32_t urs_deadline_unread(struct urs_reactor *reactor);

/* Judges the sessions whose timers are due, a bounded number of them per call. */
void urs_deadline_run(struct urs_reactor *reactor);

#endif
