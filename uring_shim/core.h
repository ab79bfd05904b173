/* The internals of the reactor. They are shared by turn.c (the hot path), by the files that handle parts of a session's
 * life (admission.c, intake.c, deadline.c, budget.c, lifecycle.c, zero_copy.c), and by reactor.c (the calls from
 * Python). */
#ifndef URS_CORE_H
#define URS_CORE_H

#include "backlog.h"
#include "base.h"
#include "block.h"
#include "engine.h"
#include "gate.h"
#include "io.h"
#include "outbound.h"
#include "pool.h"
#include "reactor.h"
#include "rules.h"
#include "session.h"
#include "wheel.h"

enum {
    URS_COMPLETIONS = 512,               /* the initial capacity of the completion array */
    URS_COMPLETIONS_SPARE = 64,          /* of these, kept free for completions of other kinds that arrive among those
                                            of sends */
    URS_ARENA_FLUSH_BYTES = 1 << 20,     /* if the handlers' sends exceed this, they are flushed before the turn ends */
    URS_RESETS_MS = 200,                 /* how long after unanswered data the socket is checked for a reset */
    URS_DELAY_MS = 50                    /* how long a retry waits after the system lacked memory or descriptors */
};

/* Bytes that a zero-copy send has lent to the kernel: a receive buffer, or a block. */
struct urs_loan {
    struct urs_block *block;             /* its reference; NULL for a buffer of the pool */
    uint64_t id;                         /* the id of the session */
    uint32_t next_free;                  /* while free: token + 1 of the next free loan */
    uint16_t buffer;
    bool sending;                        /* the completion URS_IO_SEND_ZC is still to come */
};

/* The event that returns a receive buffer to the pool. */
enum urs_lent {
    URS_LENT_NOT = 0,                    /* not lent: the end of the turn releases it */
    URS_LENT_IN_TURN = 1,                /* lent, its turn still runs: the end of the turn releases it if the kernel has
                                            returned it */
    URS_LENT_BEYOND = 2                  /* lent, its turn is over: the kernel's notification releases it */
};

/* A list of session slots. A flag in the session keeps it on the list at most once. The array always has room for every
 * session. */
struct urs_slots {
    uint32_t *slots;
    uint32_t count;
};

/* A queue of session slots, linked by next_slot. A session is in at most one queue, and has a flag for it. */
struct urs_queue {
    uint32_t first;                      /* slot + 1; first and last are meaningless while the queue is empty */
    uint32_t last;
    uint32_t count;
};

enum urs_listener_state {
    URS_LISTENER_OPEN = 0,
    URS_LISTENER_CLOSING = 1,            /* unlisten was called; the backend has not been told yet */
    URS_LISTENER_CLOSED = 2
};

struct urs_listener {
    int fd;
    uint8_t state;                       /* enum urs_listener_state */
    bool armed;
    bool local;                          /* AF_UNIX */
    uint8_t rules;                       /* the index of the rules of its sessions */
};

enum urs_watch_state {
    URS_WATCH_FREE = 0,
    URS_WATCH_QUIET = 1,                 /* not known to be ready */
    URS_WATCH_READY = 2,                 /* on the list of ready watches, which Python takes */
    URS_WATCH_DELAYED = 3,               /* the backend could not watch: retried after URS_DELAY_MS */
    URS_WATCH_STOPPING = 4,              /* cancelled; the backend has not been told yet */
    URS_WATCH_STOPPED = 5                /* cancelled; the last completion is still to come */
};

struct urs_watch {
    int fd;                              /* a duplicate: it names the same open file whatever the caller does with the
                                            number it gave */
    uint32_t generation;                 /* odd while in use; completions carry its low 24 bits */
    uint8_t state;                       /* enum urs_watch_state */
    bool armed;                          /* a completion is still to come */
    bool writable;
};

struct urs_watches {
    struct urs_watch *all;               /* by slot */
    uint32_t *ready;                     /* slots in the order in which they became ready; room for all */
    uint32_t room;
    uint32_t ready_count;
    bool due;                            /* a watch must be armed or stopped before the next wait */
};

struct urs_reactor {
    struct urs_io *io;
    struct urs_pool pool;
    struct urs_outbox outbox;
    struct urs_memory memory;
    struct urs_sessions sessions;
    struct urs_wheel wheel;
    struct urs_reactor_options options;
    struct urs_rules_table rules;

    struct urs_event *events;            /* URS_EVENTS_MAX */
    int32_t *targets;                    /* columns of the events: Python reads each column in one copy */
    uint32_t *offsets;
    uint32_t *lengths;
    uint8_t *opcodes;
    uint32_t event_count;
    uint32_t applied;                    /* the number of events that have been applied */
    uint32_t visible;                    /* the number of events that Python must look at */
    struct urs_event *late;              /* events created while Python handles this turn; the next turn delivers them
                                            first */
    uint32_t late_count;
    uint32_t late_room;

    struct urs_completion *completions;  /* the completions that have not been dispatched yet */
    uint32_t completion_room;
    uint32_t completion_next;
    uint32_t completion_count;
    uint16_t *used_buffers;              /* released when the turn's sends have completed */
    uint32_t used_count;
    struct iovec *vectors;               /* of the sends that have not been submitted yet */
    uint32_t vector_count;

    struct urs_loan *loans;              /* a quarter of the number of receive buffers; NULL without zero copy */
    uint32_t loan_free;                  /* token + 1 */
    uint8_t *lent;                       /* indexed by receive buffer: enum urs_lent */

    struct urs_slots dirty;              /* sessions to flush */
    struct urs_slots ready;              /* sessions with held input to feed */
    struct urs_queue lively;             /* sessions that wait for a receive buffer, see intake.c */
    struct urs_queue heavy;
    struct urs_slots delayed;            /* sessions to arm or flush after URS_DELAY_MS */
    struct urs_slots dead;               /* sessions to free as soon as no event names them */
    uint32_t slots_room;
    uint32_t silent_first;               /* slot + 1 of the oldest session that has not sent a byte; 0: none */
    uint32_t silent_last;
    uint32_t silent_turn;                /* the turn in which completions were last searched for the first bytes of
                                            silent sessions */

    struct urs_watches watches;

    struct urs_listener *listeners;
    uint32_t listener_room;
    uint32_t listener_count;
    struct urs_ip_count *ips;            /* sessions per address, a hash table with open addressing */
    uint32_t ips_room;
    uint32_t ips_used;
    uint64_t ip_key[2];                  /* the secret key of the hash of addresses */

    struct urs_reactor_stats stats;
    uint64_t now_ms;
    uint64_t now_us;
    uint64_t delayed_until_ms;
    uint64_t budget_scan_ms;             /* the budget does not scan the sessions before this time */
    uint64_t resets_due_ms;              /* when unsure sessions are checked for a reset; 0: there are none */
    uint32_t resets_slot;                /* the first slot that this check looks at */
    uint64_t short_until_turn;           /* receive buffers count as short until then */
    uint32_t turn;
    uint32_t handshakes;
    uint32_t sends;                      /* submitted or queued, and not yet completed */
    uint64_t owner;                      /* once started: urs_thread_number of the owner thread */
    bool resets_again;                   /* a session that this check has passed became unsure: another check follows */
    bool forked;                         /* this process inherited the reactor by fork and must not use it */
    bool echo;
    bool started;
    bool draining;
    bool woken;
    bool dispatching;                    /* new events may be added to this turn's events */
    bool broken;                         /* an event found no room, which is a fault of the shim: no further turn is
                                            taken */
};

enum { URS_VECTORS = 1024 };

static inline struct urs_session *urs_core_session(const struct urs_reactor *reactor, uint32_t slot)
{
    return urs_session_at(&reactor->sessions, slot);
}

/* The rules of a session. The pointer is valid until rules are added. */
static inline const struct urs_rules *urs_core_rules(const struct urs_reactor *reactor,
                                                     const struct urs_session *session)
{
    URS_ASSERT(session->rules < reactor->rules.count);
    return &reactor->rules.sets[session->rules];
}

static inline void urs_slots_push(struct urs_slots *slots, uint32_t slot) { slots->slots[slots->count++] = slot; }

/* The number of the calling thread; 0 until the thread has started a reactor. No two threads ever have the same number,
 * while the system reuses the pthread_t of a thread that has ended. */
extern _Thread_local uint64_t urs_thread_number;

/* Returns 0 if the calling thread may use the reactor. Any thread may use it before it is started, and only its owner
 * afterwards. */
static inline int urs_core_check(const struct urs_reactor *reactor)
{
    if (URS_LIKELY(!reactor->started || reactor->owner == urs_thread_number) && !reactor->forked)
        return 0;
    return reactor->forked ? URS_ERROR_FORKED : URS_ERROR_THREAD;
}

/* Whether the engine may take the session's input now. After our close frame it always may, because the close frame of
 * the peer must be found. */
static inline bool urs_core_may_feed(const struct urs_session *session)
{
    return session->state == URS_SESSION_AWAIT_CLOSE
        || (session->state == URS_SESSION_OPEN && !session->paused && !session->choked);
}

/* Schedules a retry in URS_DELAY_MS, unless one is scheduled already: postponing it each time would starve the sessions
 * that wait already. */
static inline void urs_core_pause(struct urs_reactor *reactor)
{
    if (reactor->delayed_until_ms == 0)
        reactor->delayed_until_ms = reactor->now_ms + URS_DELAY_MS;
}

/* turn.c */

/* Puts a session on the list of sessions that have something to send or to end. */
void urs_turn_dirty(struct urs_reactor *reactor, struct urs_session *session);

#define URS_NO_EVENT UINT32_MAX

/* Applies the events with an index below `until`: sends their echoes, pongs and close frames, and ends sessions, in
 * wire order. An `until` larger than the number of events means the number of events that Python has handled. `in_hand`
 * is the index of a message whose handler has not returned yet, so that its payload must not change; URS_NO_EVENT for
 * none. */
void urs_turn_apply(struct urs_reactor *reactor, uint32_t until, uint32_t in_hand);

/* Sends everything that is queued. Returns 0, or -errno if the backend is unusable. */
int urs_turn_flush(struct urs_reactor *reactor);

/* Gives held input to the engine as soon as the turn has room. */
void urs_turn_ready(struct urs_reactor *reactor, struct urs_session *session);

/* Arms a receive if the session wants input and none is armed. Cancels the armed receive if the session wants no
 * input. */
void urs_turn_receive(struct urs_reactor *reactor, struct urs_session *session);

/* Cancels the session's receive if one is armed. Its last completion still follows. */
void urs_turn_stop_receiving(struct urs_reactor *reactor, struct urs_session *session);

/* Arms a receive of one completion if the session wants input and none is armed. Returns whether it armed one. */
bool urs_turn_receive_once(struct urs_reactor *reactor, struct urs_session *session);

/* Adds an event for Python. While Python handles the events of a turn, the new event belongs to the next turn. */
void urs_turn_event(struct urs_reactor *reactor, uint32_t slot, const struct urs_item *item);

void urs_turn_clock(struct urs_reactor *reactor);

/* Collects the completions that have arrived already, without a system call; dispatch handles them. */
void urs_turn_collect(struct urs_reactor *reactor);

/* intake.c */

/* The number of sessions that wait for a receive buffer. */
static inline uint32_t urs_intake_waiting(const struct urs_reactor *reactor)
{
    return reactor->lively.count + reactor->heavy.count;
}

static inline uint32_t urs_intake_free_buffers(const struct urs_reactor *reactor)
{
    return reactor->pool.buffers - reactor->pool.in_use;
}

/* Records that a receive found no buffer. */
void urs_intake_shortage(struct urs_reactor *reactor);

/* Whether a session that wants input must queue for a buffer: another session waits already, or one did a few turns
 * ago. */
bool urs_intake_is_short(const struct urs_reactor *reactor);

/* Records how many bytes the session's last receive brought. This decides in which queue the session waits next
 * time. */
void urs_intake_measure(const struct urs_reactor *reactor, struct urs_session *session, size_t bytes);

/* Records that a receive brought data and stays armed. Unless a send follows, the socket must be checked for a reset
 * later. */
static inline void urs_intake_doubt(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!reactor->io->operations->misses_resets)
        return;
    session->unsure = true;
    if (reactor->resets_due_ms == 0)
        reactor->resets_due_ms = reactor->now_ms + URS_RESETS_MS;
    else if (session->slot < reactor->resets_slot)
        reactor->resets_again = true;
}

/* Checks, once the time for it has come, for resets that receives have missed. It cancels the receives of these
 * sessions; their next receives report the resets. */
void urs_intake_find_resets(struct urs_reactor *reactor);

/* Puts a session without an armed receive at the end of its queue. */
void urs_intake_queue(struct urs_reactor *reactor, struct urs_session *session);

/* Arms waiting sessions in order, at most one per free buffer. */
void urs_intake_serve(struct urs_reactor *reactor);

/* zero_copy.c */

/* Prepares loans if the backend supports them and the options allow them. Returns 0 or -ENOMEM. */
int urs_zero_copy_open(struct urs_reactor *reactor, bool registered);
void urs_zero_copy_close(struct urs_reactor *reactor);

/* Queues the session's segments as a zero-copy send. Returns 0, -EBUSY as `send` does, or -ENOTSUP if the caller must
 * use a plain send. */
int urs_zero_copy_send(struct urs_reactor *reactor, struct urs_session *session);

/* Handles the completion of a zero-copy send. Returns its session, or NULL if the session is gone. Sets *refused if
 * nothing was sent: the caller must send the same bytes plainly, and the session makes no further zero-copy sends.
 * Without `more` the loan has ended. */
struct urs_session *urs_zero_copy_sent(struct urs_reactor *reactor, const struct urs_completion *completion,
                                       bool *refused);

/* Handles the kernel's notification that it no longer reads the bytes of a loan. */
void urs_zero_copy_release(struct urs_reactor *reactor, const struct urs_completion *completion);

/* watch.c */

/* Arms the watches that are not armed, and stops those that were cancelled. */
void urs_watch_arm(struct urs_reactor *reactor);

/* URS_DELAY_MS have passed since a watch could not be armed: it is armed again. */
void urs_watch_retry(struct urs_reactor *reactor);

/* Handles a completion of kind URS_IO_WATCH. */
void urs_watch_completed(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Frees all watches. The backend must be closed already. */
void urs_watch_close(struct urs_reactor *reactor);

/* admission.c */

/* Chooses the secret key of the address hash. The clock must be set. */
void urs_admission_open(struct urs_reactor *reactor);

/* Reads the address of the session's peer from the kernel. */
void urs_admission_peer(struct urs_session *session);

/* Counts the session for its address. Returns false if the address has as many sessions as it may have. */
bool urs_admission_count(struct urs_reactor *reactor, struct urs_session *session);

/* Refuses a session whose request has not been answered: counts the refusal, queues the answer, and ends the session
 * once the answer is sent. */
void urs_admission_refuse(struct urs_reactor *reactor, struct urs_session *session, enum urs_refusal why);

/* Counts one session less for an address. `hash` is the one kept in the session; 0 means that the session was not
 * counted. */
void urs_admission_leave(struct urs_reactor *reactor, uint32_t hash);

/* Handles the completion of an accept: a new connection, or the end of accepting (temporary or final). */
void urs_admission_accepted(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Removes a session from the list of silent sessions (those that have not sent a byte), if it is on the list. */
void urs_admission_spoke(struct urs_reactor *reactor, struct urs_session *session);

/* Arms an accept on every listening socket that has none armed, and ends that of a socket that is closing. */
void urs_admission_arm(struct urs_reactor *reactor);

/* budget.c */

/* Enforces the memory budget: when it is nearly used up, ends the sessions that hold the most, until the sessions
 * together hold at most three quarters of it. Scans the sessions at most once per call. */
void urs_budget_enforce(struct urs_reactor *reactor);

/* lifecycle.c */

/* Creates a session for `fd` with the set of rules of that index, and grows every list so that it fits. Returns NULL if
 * there is no memory. */
struct urs_session *urs_life_new(struct urs_reactor *reactor, int fd, bool local, uint8_t rules);

/* Takes bytes of an opening request. */
void urs_life_head(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes);

/* Opens a session whose upgrade is done. */
void urs_life_open(struct urs_reactor *reactor, struct urs_session *session);

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

/* deadline.c: every clock of a session. docs/deadlines.md has the table of the clocks. */

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

/* Takes the pong that a client sent. */
void urs_deadline_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item);

/* Counts the sessions that await the peer's close frame and have unread input. */
uint32_t urs_deadline_unread(struct urs_reactor *reactor);

/* Checks the sessions whose timers are due, a bounded number per call. */
void urs_deadline_run(struct urs_reactor *reactor);

#endif
