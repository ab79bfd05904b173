/* Which sessions receive while receive buffers are short. Sessions that wait for a buffer stand in two queues: lively
 * ones, whose last receive was small, and heavy ones. Each turn arms as many of them as there are free buffers. */
#include "core.h"

enum {
    HEAVY_SHARE = 8,                     /* a receive of more than this part of a buffer makes a session heavy */
    HEAVY_PART_MIN = 4,                  /* heavy sessions have at least this part of the free buffers ... */
    HEAVY_PART_MAX = 2,                  /* ... and at most this one */
    SHORT_TURNS = 64                     /* buffers count as short for so long after a receive found none */
};

void urs_intake_shortage(struct urs_reactor *reactor)
{
    reactor->stats.enobufs_parks++;
    reactor->short_until_turn = reactor->stats.turns + SHORT_TURNS;
}

bool urs_intake_is_short(const struct urs_reactor *reactor)
{
    return reactor->stats.turns < reactor->short_until_turn || urs_intake_waiting(reactor) > 0;
}

void urs_intake_measure(const struct urs_reactor *reactor, struct urs_session *session, size_t bytes)
{
    session->heavy = bytes > reactor->pool.buffer_bytes / HEAVY_SHARE;
}

void urs_intake_queue(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(!session->parked && !session->receiving);
    struct urs_queue *queue = session->heavy ? &reactor->heavy : &reactor->lively;
    session->parked = true;
    session->next_slot = 0;
    if (queue->count == 0)
        queue->first = session->slot + 1;
    else
        urs_core_session(reactor, queue->last - 1)->next_slot = session->slot + 1;
    queue->last = session->slot + 1;
    queue->count++;
}

/* Arms the first `room` sessions of a queue that still want input. Returns how many that were. */
static uint32_t serve(struct urs_reactor *reactor, struct urs_queue *queue, uint32_t room)
{
    uint32_t armed = 0;
    while (armed < room && queue->count > 0) {
        struct urs_session *session = urs_core_session(reactor, queue->first - 1);
        URS_ASSERT(session->parked);
        queue->first = session->next_slot;
        queue->count--;
        session->parked = false;
        armed += urs_turn_receive_once(reactor, session);
    }
    return armed;
}

void urs_intake_serve(struct urs_reactor *reactor)
{
    if (URS_LIKELY(urs_intake_waiting(reactor) == 0))
        return;
    uint32_t room = urs_intake_free_buffers(reactor);
    if (room == 0)
        return;
    /* Nobody starves: heavy sessions have their part however many lively ones wait. But it stays a small part, which
     * keeps the turn short, and a session that was silent, with its receive armed, finds a buffer at once. */
    uint32_t heavy_min = (uint32_t)urs_min(reactor->heavy.count, urs_max(1, room / HEAVY_PART_MIN));
    uint32_t heavy_max = (uint32_t)urs_max(1, room / HEAVY_PART_MAX);
    uint32_t armed = serve(reactor, &reactor->lively, room - heavy_min);
    serve(reactor, &reactor->heavy, (uint32_t)urs_min(room - armed, heavy_max));
}
