/* The rules that a connection is served by: its limits, deadlines and water marks. A reactor has a table of rules, and
 * each listening socket and each session names its own by an index. A set of rules never changes and is never removed,
 * so an index stays valid until the reactor is closed. */
#ifndef URS_RULES_H
#define URS_RULES_H

#include "base.h"
#include "engine.h"

/* cdef: begin */

enum urs_rules_limit { URS_RULES_MAX = 256 };  /* sets of rules in one reactor: a session has 8 bits for its index */

enum urs_on_full { URS_ON_FULL_CLOSE = 0, URS_ON_FULL_DROP = 1, URS_ON_FULL_ERROR = 2 };

/* Why a connection was not accepted, or a request not answered with 101. */
enum urs_refusal {
    URS_REFUSED_SESSIONS = 0,
    URS_REFUSED_PER_IP = 1,
    URS_REFUSED_HANDSHAKES = 2,
    URS_REFUSED_DRAINING = 3,
    URS_REFUSED_TIMEOUT = 4,
    URS_REFUSED_MEMORY = 5,
    URS_REFUSALS = 6
};

/* An HTTP answer. Its bytes are sent unchanged, except that the current Date is filled in. */
struct urs_answer {
    uint8_t *data;
    size_t bytes;                        /* 0: no answer is sent */
    size_t date_at;                      /* offset of the 29 bytes of the Date (RFC 9110 5.6.7); 0: it has no Date */
};

/* Milliseconds and limits: 0 means no limit, unless a comment says otherwise. */
struct urs_rules {
    struct urs_engine_rules engine;
    uint64_t backlog_bytes_max;          /* never 0 */
    uint64_t backlog_high_bytes;
    uint64_t backlog_low_bytes;
    uint32_t on_full;                    /* enum urs_on_full */
    uint32_t session_turn_bytes_max;     /* never 0 */
    uint32_t session_turn_messages_max;  /* 1 to URS_MESSAGES_MAX */
    uint32_t header_bytes_max;           /* never 0 */
    uint32_t handshake_ms;
    uint32_t idle_ms;
    uint32_t ping_interval_ms;
    uint32_t ping_timeout_ms;
    uint32_t close_ms;
    uint32_t session_ms;
    bool proxy_protocol;                 /* a PROXY header may come in front of a request */
    bool deliver_pongs;                  /* each pong is an event, also one that answers our own ping */
    bool deliver_while_closing;          /* messages that come between our close frame and the peer's are events; with
                                            deliver_pongs, pongs too */
    uint8_t batch;                       /* which batch handler is given the messages; 0: they are handled one by one */
    bool tcp_nodelay;                    /* for adopted sockets; accepted ones inherit it from their listener */
    struct urs_answer refusals[6];       /* by enum urs_refusal; their memory is the caller's and must stay until the
                                            reactor is closed */
};

/* cdef: end */

/* The rules of one reactor. Zero-initialise it. */
struct urs_rules_table {
    struct urs_rules *sets;
    uint32_t count;
    uint32_t room;
};

/* Copies a set of rules into the table. Returns its index, URS_ERROR_LIMIT if the table has URS_RULES_MAX sets, or
 * -ENOMEM. Adding a set may move the others: keep an index, never a pointer. */
int urs_rules_add(struct urs_rules_table *table, const struct urs_rules *rules);

/* Frees the table. */
void urs_rules_clear(struct urs_rules_table *table);

#endif
