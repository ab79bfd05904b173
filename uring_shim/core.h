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
#include "topics.h"
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

/* A list of session slots. A bit in the session keeps it on the list at most once. The array always has room for every
 * session. */
struct urs_slots {
    uint32_t *slots;
    uint32_t count;
};

/* A queue of session slots, linked by next_slot. A session is in at most one queue (URS_LIST_BUFFERS). */
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
    bool is_unix;
    uint8_t rules;                       /* the index of the rules of its sessions */
    uint32_t requests;                   /* sessions that it accepted and whose requests are not answered yet */
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

/* The run of run.h: frames of one topic that follow one another in the arena. */
struct urs_topic_run {
    uint32_t topic;                      /* index + 1; 0: no run is open */
    uint32_t skipped;                    /* the slot of the session that the first frame is not for; UINT32_MAX: none */
    uint8_t *end;                        /* of the last frame */
    size_t room;                         /* payload bytes that each member's backlog has room for */
    bool extended;                       /* it has more than one frame */
};

struct urs_reactor {
    struct urs_io *io;
    struct urs_pool pool;
    struct urs_outbox outbox;
    struct urs_memory memory;
    struct urs_sessions sessions;
    struct urs_wheel wheel;
    struct urs_topics topics;
    struct urs_topic_run run;
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
    struct urs_slots fanout;             /* sessions that have only published messages to flush, a slice per turn */
    struct urs_slots feed_list;          /* sessions with held input to feed */
    struct urs_queue lively;             /* sessions that wait for a receive buffer, see intake.c */
    struct urs_queue heavy;
    struct urs_slots retries;            /* sessions to arm or flush at retry_at_ms */
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
    uint64_t retry_at_ms;                /* 0: there is nothing to retry */
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

/* Adds a session to the end of the list that `list` stands for. It must not be on that list. */
static inline void urs_slots_add(struct urs_slots *slots, struct urs_session *session, enum urs_list list)
{
    urs_session_join(session, list);
    slots->slots[slots->count++] = session->slot;
}

/* The number of the calling thread; 0 until the thread has started a reactor. No two threads ever have the same number,
 * while the system reuses the pthread_t of a thread that has ended. */
/* LeakSanitizer of GCC 12 misreads blocks of dynamic TLS and crashes at the end of the process. Static TLS is not for
 * every build: musl does not load a module that has it. */
#ifdef __SANITIZE_ADDRESS__
#define URS_THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define URS_THREAD_LOCAL _Thread_local
#endif

extern URS_THREAD_LOCAL uint64_t urs_thread_number;

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
        || (session->state == URS_SESSION_OPEN && session->input_stopped_by == 0);
}

#endif
