/* The last messages of a topic, kept in shared blocks and bounded by number, size and age. No I/O. */
#ifndef URS_HISTORY_H
#define URS_HISTORY_H

#include "base.h"
#include "chain.h"

/* cdef: begin */

/* The limits of a history; with messages_max 0 there is none. */
struct urs_history_limits {
    uint32_t messages_max;
    uint64_t bytes_max;                  /* of frames, headers included */
    uint64_t age_ms_max;                 /* 0: no limit */
};

/* cdef: end */

struct urs_history_entry {
    struct urs_slice frame;
    uint64_t at_ms;                      /* when it was published */
};

/* Zero-initialise it, and set the limits. */
struct urs_history {
    struct urs_history_limits limits;
    struct urs_history_entry *ring;
    uint32_t room;                       /* 0 or a power of two */
    uint32_t first;                      /* of the oldest entry, modulo 2^32 */
    uint32_t count;
    size_t bytes;
};

/* Returns an entry; place 0 is the oldest. */
static inline const struct urs_history_entry *urs_history_at(const struct urs_history *history, uint32_t place)
{
    URS_ASSERT(place < history->count);
    return &history->ring[(history->first + place) & (history->room - 1)];
}

/* Adds a frame, and takes a reference of its own to the block. Drops the oldest frames that exceed a limit. Returns 0, or
 * -ENOMEM: then nothing is left in the history, because it may have no hole. */
int urs_history_add(struct urs_history *history, struct urs_slice frame, uint64_t now_ms);

/* Drops the frames that are too old. */
void urs_history_expire(struct urs_history *history, uint64_t now_ms);

/* Drops everything. */
void urs_history_clear(struct urs_history *history);

#endif
