/* The messages of a turn in batches: runs of them for one handler, their payloads in columns, and sends to many sessions
 * in one call. Only the reactor's thread may call these functions; others get URS_ERROR_THREAD. `rows` are indices of
 * messages among the last turn's events that Python is still handling; NULL means `count` indices from `first` on. */
#ifndef URS_BATCH_H
#define URS_BATCH_H

#include "command.h"
#include "reactor.h"

/* cdef: begin */

/* A stretch of a turn's events. */
struct urs_run {
    uint32_t end;                        /* the index after its last event */
    uint32_t batch;                      /* urs_rules.batch of the sessions of its messages; 0: none of its events is a
                                            message for a batch handler */
    uint32_t count;                      /* how many messages the handler is given */
    uint32_t first;                      /* the index of the first of them, if there are any */
    bool contiguous;                     /* they are `count` events in a row */
};

/* Describes the longest stretch of the last turn's events that begins at index `begin` and ends before `until`: either
 * messages for one batch handler, at most `count_max` of them, or events that are not for batch handlers. Pings, and
 * messages of sessions that have begun to close (unless their rules ask for them), may lie among the messages: Python
 * has nothing to do for them. Writes the indices of the messages to `rows`, which has room for URS_EVENTS_MAX, and
 * clears the echo flags of the messages. Returns 0 or a negative result. */
int urs_batch_find(struct urs_reactor *reactor, uint32_t begin, uint32_t until, uint32_t count_max, uint32_t *rows,
                   struct urs_run *run);

/* Writes the id of the session of each message. Returns 0, or URS_ERROR_STATE if one is no message in hand. */
int urs_batch_ids(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                  uint64_t *ids);

/* Writes where each payload begins if they follow one another, and at last where the last one ends (count + 1 offsets),
 * and copies the payloads to `data` if it has room for all of them. Returns the bytes of all payloads,
 * URS_ERROR_TOO_BIG if they do not fit into 31 bits, or URS_ERROR_STATE. */
int64_t urs_batch_gather(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                         uint8_t *data, size_t room, int32_t *offsets);

/* Copies each payload that is binary and has exactly `width` bytes to its place in `data`, which has count * width
 * bytes, and sets its entry of `fits`. The place of any other message is filled with zeros, and its entry is false.
 * Returns 0 or URS_ERROR_STATE. */
int urs_batch_records(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                      size_t width, uint8_t *data, bool *fits);

/* The payloads of one call: payload i is [offsets[i], offsets[i + 1]) of `data`, or, without offsets, the `width` bytes
 * from i * stride on (stride 0: all are the same). */
struct urs_payloads {
    const uint8_t *data;
    size_t bytes;
    const int64_t *offsets;
    size_t width;
    size_t stride;
};

/* How many messages of one call had which result. */
struct urs_batch_results {
    uint32_t sent;                       /* URS_SENT */
    uint32_t queued;                     /* URS_QUEUED */
    uint32_t dropped;                    /* URS_DROPPED */
    uint32_t skipped;                    /* URS_ERROR_STALE, URS_ERROR_CLOSING */
    uint32_t full;                       /* URS_ERROR_FULL */
    uint32_t interleaved;                /* URS_ERROR_INTERLEAVED */
};

/* Sends payload i to the session ids[i], for each i, as urs_command_send does with `index`. Results that concern one
 * session are counted, and the others still get their messages. Returns 0, URS_ERROR_STATE if a payload lies outside of
 * `data` (nothing is sent then), or the result that ended it early. */
int urs_batch_send(struct urs_reactor *reactor, const uint64_t *ids, uint32_t count, uint32_t index, uint8_t opcode,
                   const struct urs_payloads *payloads, struct urs_batch_results *results);

/* Queues the echoes that are marked among the events from `first` to before `until`, now and not when their handler has
 * returned: those of one session, or of all (id 0). Their payloads stay as they are. Returns 0, URS_ERROR_STATE or
 * another negative result. */
int urs_batch_echo(struct urs_reactor *reactor, uint64_t id, uint32_t first, uint32_t until);

/* cdef: end */

#endif
