/* The last messages of a topic: a ring of references to frames. */
#include "history.h"

#include <errno.h>
#include <stdlib.h>

enum { ROOM_MIN = 4 };

static void drop_oldest(struct urs_history *history)
{
    struct urs_history_entry *entry = &history->ring[history->first & (history->room - 1)];
    URS_ASSERT(history->count > 0 && history->bytes >= urs_slice_bytes(&entry->frame));
    history->bytes -= urs_slice_bytes(&entry->frame);
    urs_slice_drop(&entry->frame);
    history->first++;
    history->count--;
}

void urs_history_clear(struct urs_history *history)
{
    while (history->count > 0)
        drop_oldest(history);
    free(history->ring);
    history->ring = NULL;
    history->room = 0;
}

void urs_history_expire(struct urs_history *history, uint64_t now_ms)
{
    uint64_t max = history->limits.age_ms_max;
    while (max != 0 && history->count > 0 && now_ms - urs_history_at(history, 0)->at_ms > max)
        drop_oldest(history);
    if (history->count == 0)
        urs_history_clear(history);
}

static int grow(struct urs_history *history)
{
    uint32_t room = (uint32_t)urs_max(ROOM_MIN, 2 * (size_t)history->room);
    struct urs_history_entry *ring = malloc(room * sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    for (uint32_t place = 0; place < history->count; place++)
        ring[(history->first + place) & (room - 1)] = *urs_history_at(history, place);
    free(history->ring);
    history->ring = ring;
    history->room = room;
    return 0;
}

int urs_history_add(struct urs_history *history, struct urs_slice frame, uint64_t now_ms)
{
    URS_ASSERT(frame.block != NULL && history->limits.messages_max > 0);
    if (history->count == history->limits.messages_max)
        drop_oldest(history);
    if (history->count == history->room && grow(history) != 0) {
        urs_history_clear(history);
        return -ENOMEM;
    }
    urs_block_hold(frame.block);
    history->ring[(history->first + history->count) & (history->room - 1)] = (struct urs_history_entry){
        .frame = frame, .at_ms = now_ms};
    history->count++;
    history->bytes += urs_slice_bytes(&frame);
    while (history->bytes > history->limits.bytes_max)
        drop_oldest(history);
    urs_history_expire(history, now_ms);
    return 0;
}
