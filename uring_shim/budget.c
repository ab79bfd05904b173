/* The memory budget: when sessions hold nearly all of it, this file finds the sessions that hold the most and ends
 * them. block.c refuses single allocations that would exceed the budget. */
#include "core.h"

#include <string.h>

enum { VICTIMS_MAX = 64 };               /* sessions ended in one turn at most, so that sorting stays cheap */

struct holder {
    uint32_t slot;
    size_t bytes;
};

/* The result of one scan of all sessions. */
struct scan {
    struct holder greediest[VICTIMS_MAX]; /* sorted: the one that holds the most comes first */
    size_t count;
    size_t bytes;                        /* held by all sessions together */
};

/* Inserts a holder at its place among the greediest, if it holds enough. */
static void rank(struct scan *scan, struct holder holder)
{
    if (scan->count == VICTIMS_MAX && holder.bytes <= scan->greediest[VICTIMS_MAX - 1].bytes)
        return;
    size_t place = 0;
    while (place < scan->count && scan->greediest[place].bytes >= holder.bytes)
        place++;
    scan->count = urs_min(scan->count + 1, VICTIMS_MAX);
    memmove(&scan->greediest[place + 1], &scan->greediest[place], (scan->count - 1 - place) * sizeof holder);
    scan->greediest[place] = holder;
}

static void scan_sessions(const struct urs_reactor *reactor, struct scan *scan)
{
    scan->count = 0;
    scan->bytes = 0;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        const struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state == URS_SESSION_FREE)
            continue;
        struct holder holder = {.slot = slot, .bytes = urs_session_memory_bytes(session)};
        scan->bytes += holder.bytes;
        if (holder.bytes > 0)
            rank(scan, holder);
    }
}

/* Frees the memory that the session holds, and ends the session. */
static void evict(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_close frame = urs_failure_close(URS_FAILURE_MEMORY);
    URS_ASSERT(session->state != URS_SESSION_FREE && session->fd >= 0);
    reactor->stats.evictions++;
    if (session->backlog != NULL || session->state != URS_SESSION_OPEN) {
        /* Bytes would be missing from its stream, so it cannot be closed cleanly. */
        urs_life_lose(reactor, session, URS_ERROR_MEMORY_BUDGET);
        return;
    }
    urs_session_drop_memory(session);
    if (session->told)
        return;  /* the session is ending already */
    urs_outbound_close(&reactor->outbox, &session->outbound, frame.code, (const uint8_t *)frame.reason,
                       strlen(frame.reason));
    session->failure = URS_FAILURE_MEMORY;
    session->told = true;
    urs_turn_event(reactor, session->slot,
                   &(struct urs_item){.kind = URS_EVENT_LOST, .error = URS_ERROR_MEMORY_BUDGET,
                                      .close_code = frame.code});
    urs_life_finish(reactor, session);
}

void urs_budget_enforce(struct urs_reactor *reactor)
{
    size_t max = reactor->memory.bytes_max;
    if (max == 0 || reactor->memory.bytes_used < max - max / 8 || reactor->now_ms < reactor->budget_scan_ms)
        return;
    struct scan scan;
    size_t ended = 0;
    scan_sessions(reactor, &scan);
    /* Memory that belongs to no session (for example memory lent to the kernel) returns by itself: no session is ended
     * for it. */
    for (size_t left = scan.bytes; ended < scan.count && left > max - max / 4; ended++) {
        URS_ASSERT(scan.greediest[ended].bytes <= left);
        evict(reactor, urs_core_session(reactor, scan.greediest[ended].slot));
        left -= scan.greediest[ended].bytes;
    }
    if (ended == 0)
        reactor->budget_scan_ms = reactor->now_ms + URS_DELAY_MS;  /* no session to end: wait before the next scan */
}
