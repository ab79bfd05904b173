/* One coarse timer per session, set in O(1): a wheel of buckets. A timer never fires early, except when it is set
 * further than 32 s ahead: check the clock when it fires, and set it again. The wheel knows no clock and no session. */
#ifndef URS_WHEEL_H
#define URS_WHEEL_H

#include "base.h"

enum {
    URS_WHEEL_BUCKETS = 1024,
    URS_WHEEL_TICK_MS = 32,              /* the resolution; the horizon is 32 s */
    URS_WHEEL_NONE = 0xffffffff
};

struct urs_wheel_entry {
    uint32_t next;                       /* slot + 1 */
    uint32_t previous;
    uint32_t bucket;                     /* index + 1; 0: the timer is not set */
};

struct urs_wheel {
    struct urs_wheel_entry *entries;     /* by slot */
    uint32_t room;
    uint64_t tick;                       /* every earlier bucket is empty */
    uint32_t heads[URS_WHEEL_BUCKETS];   /* slot + 1 */
    uint64_t filled[URS_WHEEL_BUCKETS / 64]; /* one bit per bucket; set if the bucket is not empty */
};

void urs_wheel_open(struct urs_wheel *wheel, uint64_t now_ms);
void urs_wheel_close(struct urs_wheel *wheel);

/* Sets or moves the timer of `slot`. Returns 0, or -ENOMEM (only when a slot is used for the first time). */
int urs_wheel_set(struct urs_wheel *wheel, uint32_t slot, uint64_t at_ms);

void urs_wheel_cancel(struct urs_wheel *wheel, uint32_t slot);

/* Milliseconds until the next timer is due; -1 if none is set. */
int64_t urs_wheel_next_ms(const struct urs_wheel *wheel, uint64_t now_ms);

/* Removes one due timer and returns its slot; URS_WHEEL_NONE if none is due. */
uint32_t urs_wheel_take(struct urs_wheel *wheel, uint64_t now_ms);

#endif
