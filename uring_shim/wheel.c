/* The wheel: a bitmap finds the next bucket; a doubly linked list holds the slots of each bucket. */
#include "wheel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void urs_wheel_open(struct urs_wheel *wheel, uint64_t now_ms)
{
    memset(wheel, 0, sizeof *wheel);
    wheel->tick = now_ms / URS_WHEEL_TICK_MS;
}

void urs_wheel_close(struct urs_wheel *wheel)
{
    free(wheel->entries);
    wheel->entries = NULL;
    wheel->room = 0;
}

void urs_wheel_cancel(struct urs_wheel *wheel, uint32_t slot)
{
    if (slot >= wheel->room || wheel->entries[slot].bucket == 0)
        return;
    struct urs_wheel_entry *entry = &wheel->entries[slot];
    uint32_t bucket = entry->bucket - 1;
    URS_ASSERT(bucket < URS_WHEEL_BUCKETS && wheel->heads[bucket] != 0);
    if (entry->previous != 0)
        wheel->entries[entry->previous - 1].next = entry->next;
    else
        wheel->heads[bucket] = entry->next;
    if (entry->next != 0)
        wheel->entries[entry->next - 1].previous = entry->previous;
    if (wheel->heads[bucket] == 0)
        wheel->filled[bucket / 64] &= ~(UINT64_C(1) << (bucket % 64));
    *entry = (struct urs_wheel_entry){0};
}

int urs_wheel_set(struct urs_wheel *wheel, uint32_t slot, uint64_t at_ms)
{
    if (slot >= wheel->room) {
        uint32_t room = (uint32_t)urs_max(64, urs_max(slot + 1, 2 * (size_t)wheel->room));
        struct urs_wheel_entry *entries = realloc(wheel->entries, room * sizeof *entries);
        if (entries == NULL)
            return -ENOMEM;
        memset(entries + wheel->room, 0, (room - wheel->room) * sizeof *entries);
        wheel->entries = entries;
        wheel->room = room;
    }
    /* Rounded up, so that the timer never fires early. */
    uint64_t tick = at_ms / URS_WHEEL_TICK_MS + 1;
    if (tick < wheel->tick)
        tick = wheel->tick;
    if (tick >= wheel->tick + URS_WHEEL_BUCKETS)
        tick = wheel->tick + URS_WHEEL_BUCKETS - 1;
    uint32_t bucket = (uint32_t)(tick % URS_WHEEL_BUCKETS);
    struct urs_wheel_entry *entry = &wheel->entries[slot];
    if (entry->bucket == bucket + 1)
        return 0;
    urs_wheel_cancel(wheel, slot);
    *entry = (struct urs_wheel_entry){.next = wheel->heads[bucket], .bucket = bucket + 1};
    if (entry->next != 0)
        wheel->entries[entry->next - 1].previous = slot + 1;
    wheel->heads[bucket] = slot + 1;
    wheel->filled[bucket / 64] |= UINT64_C(1) << (bucket % 64);
    return 0;
}

/* Returns the first tick, beginning with wheel->tick, whose bucket is not empty; UINT64_MAX if there is none. */
static uint64_t next_filled(const struct urs_wheel *wheel)
{
    uint32_t first = (uint32_t)(wheel->tick % URS_WHEEL_BUCKETS);
    for (uint32_t step = 0; step <= URS_WHEEL_BUCKETS / 64; step++) {
        uint32_t word = (first / 64 + step) % (URS_WHEEL_BUCKETS / 64);
        uint64_t bits = wheel->filled[word];
        if (step == 0)
            bits &= UINT64_MAX << (first % 64);
        if (step == URS_WHEEL_BUCKETS / 64)
            bits &= ~(UINT64_MAX << (first % 64));
        if (bits == 0)
            continue;
        uint32_t bucket = word * 64 + (uint32_t)__builtin_ctzll(bits);
        return wheel->tick + (bucket + URS_WHEEL_BUCKETS - first) % URS_WHEEL_BUCKETS;
    }
    return UINT64_MAX;
}

int64_t urs_wheel_next_ms(const struct urs_wheel *wheel, uint64_t now_ms)
{
    uint64_t tick = next_filled(wheel);
    if (tick == UINT64_MAX)
        return -1;
    uint64_t at_ms = tick * URS_WHEEL_TICK_MS;
    return at_ms > now_ms ? (int64_t)(at_ms - now_ms) : 0;
}

uint32_t urs_wheel_take(struct urs_wheel *wheel, uint64_t now_ms)
{
    uint64_t now = now_ms / URS_WHEEL_TICK_MS;
    uint64_t tick = next_filled(wheel);
    if (tick > now) {
        /* No timer is due: all buckets up to now are empty, and later ticks may use them. */
        if (now > wheel->tick)
            wheel->tick = now;
        return URS_WHEEL_NONE;
    }
    wheel->tick = tick;
    URS_ASSERT(wheel->heads[tick % URS_WHEEL_BUCKETS] != 0);
    uint32_t slot = wheel->heads[tick % URS_WHEEL_BUCKETS] - 1;
    urs_wheel_cancel(wheel, slot);
    return slot;
}
