/* Decides whether a frame may join what a session is going to send. Every frame is checked here first, so that each limit
 * stands in one place. Only the rule: no state, no effect. It is inline because it runs for each message. */
#ifndef URS_GATE_H
#define URS_GATE_H

#include "base.h"
#include "frame.h"
#include "rules.h"
#include "session.h"

enum {
    URS_PONGS_WAITING_MAX = 16,          /* the most pongs in a backlog; after that only the latest ping is answered */
    URS_CONTROL_RESERVE_BYTES = 4096     /* the part of a backlog that only pings, pongs and close frames may use */
};

enum urs_output {
    URS_OUTPUT_MESSAGE = 0,              /* messages, or the first fragment of one */
    URS_OUTPUT_CONTINUATION = 1,         /* another fragment */
    URS_OUTPUT_CONTROL = 2,              /* a ping, or a pong that no ping asked for */
    URS_OUTPUT_PONG = 3,                 /* the answer to a ping */
    URS_OUTPUT_CLOSE = 4
};

enum urs_gate {
    URS_GATE_OPEN = 0,                   /* the bytes may be added */
    URS_GATE_ENDED = 1,                  /* the session is not open any more, or not yet */
    URS_GATE_FULL = 2,                   /* a limit would be exceeded; it may be different later */
    URS_GATE_ORDER = 3,                  /* a message inside a fragmented one, or a continuation of none (RFC 6455
                                            5.4) */
    URS_GATE_LATEST = 4                  /* only a pong: it must replace the last one that waits (RFC 6455 5.5.3) */
};

/* Returns whether output of `kind` may join. `bytes` are those of its payload. A message may fill the backlog to
 * backlog_bytes_max with its payload; its header may exceed the limit, at the cost of the reserve. Control frames may
 * fill the reserve to the byte, header included. A close frame always has room, because a session sends only one. */
static inline enum urs_gate urs_gate_check(const struct urs_session *session, const struct urs_rules *rules,
                                           enum urs_output kind, size_t bytes)
{
    static const struct {
        bool limited;
        bool header_counts;
        uint16_t reserve_bytes;          /* beyond backlog_bytes_max */
    } table[] = {
        [URS_OUTPUT_MESSAGE] = {.limited = true},
        [URS_OUTPUT_CONTINUATION] = {.limited = true},
        [URS_OUTPUT_CONTROL] = {.limited = true, .header_counts = true, .reserve_bytes = URS_CONTROL_RESERVE_BYTES},
        [URS_OUTPUT_PONG] = {.limited = true, .header_counts = true, .reserve_bytes = URS_CONTROL_RESERVE_BYTES},
        [URS_OUTPUT_CLOSE] = {.limited = false},
    };
    URS_ASSERT((size_t)kind < URS_COUNT(table) && !session->in_run);
    if (!urs_session_is_open(session))
        return URS_GATE_ENDED;
    if (kind <= URS_OUTPUT_CONTINUATION && URS_UNLIKELY(session->unfinished != (kind == URS_OUTPUT_CONTINUATION)))
        return URS_GATE_ORDER;
    size_t waiting = session->backlog.bytes + session->outbound.bytes;
    size_t header_bytes = table[kind].header_counts ? urs_frame_answer_bytes(bytes) : 0;
    if (table[kind].limited && waiting + header_bytes + bytes > rules->backlog_bytes_max + table[kind].reserve_bytes)
        return URS_GATE_FULL;
    bool many = session->backlog.bytes > 0 && session->pongs >= URS_PONGS_WAITING_MAX;
    return kind == URS_OUTPUT_PONG && many ? URS_GATE_LATEST : URS_GATE_OPEN;
}

#endif
