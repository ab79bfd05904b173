/* The memory budget: when sessions hold nearly all of it, this file finds the sessions that hold the most and ends
 * them. block.c refuses single allocations that would exceed the budget. */
#include "budget.h"

#include <string.h>

#include "lifecycle.h"
#include "work.h"

enum { VICTIMS_MAX = 64 };               /* sessions ended in one turn at most, so that sorting stays cheap */

struct holder {
    uint32_t slot;
    size_t bytes;
};

/* Sessions in order: the one that holds the most comes first. */
struct ranking {
    struct holder holders[VICTIMS_MAX];
    size_t count;
    size_t bytes;                        /* held by all sessions together */
};

/* The result of one scan of all sessions. */
struct scan {
    struct ranking freed;                /* by what the end of a session frees at once */
    struct ranking shares;               /* by what a session holds, blocks of several sessions in equal parts */
};

/* Inserts a holder at its place in the ranking, if it holds enough. */
static void rank(struct ranking *ranking, struct holder holder)
{
    ranking->bytes += holder.bytes;
    if (holder.bytes == 0
        || (ranking->count == VICTIMS_MAX && holder.bytes <= ranking->holders[VICTIMS_MAX - 1].bytes))
        return;
    size_t place = 0;
    while (place < ranking->count && ranking->holders[place].bytes >= holder.bytes)
        place++;
    ranking->count = urs_min(ranking->count + 1, VICTIMS_MAX);
    memmove(&ranking->holders[place + 1], &ranking->holders[place], (ranking->count - 1 - place) * sizeof holder);
    ranking->holders[place] = holder;
}

static void scan_sessions(const struct urs_reactor *reactor, struct scan *scan)
{
    scan->freed.count = scan->shares.count = 0;
    scan->freed.bytes = scan->shares.bytes = 0;
    for (uint32_t slot = 0; slot < reactor->sessions.slots; slot++) {
        const struct urs_session *session = urs_core_session(reactor, slot);
        if (session->state == URS_SESSION_FREE)
            continue;
        struct urs_holding holding = urs_session_holding(session);
        rank(&scan->freed, (struct holder){.slot = slot, .bytes = holding.freed_bytes});
        rank(&scan->shares, (struct holder){.slot = slot, .bytes = holding.share_bytes});
    }
}

/* Frees the memory that the session holds, and ends the session. */
static void evict(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_close frame = urs_failure_close(URS_FAILURE_MEMORY);
    URS_ASSERT(session->state != URS_SESSION_FREE && session->fd >= 0);
    reactor->stats.evictions++;
    if (session->backlog.bytes > 0 || session->state != URS_SESSION_OPEN) {
        /* Bytes would be missing from its stream, so it cannot be closed cleanly. */
        urs_life_lose(reactor, session, URS_ERROR_MEMORY_BUDGET);
        return;
    }
    urs_session_drop_memory(session);
    if (session->socket_state != URS_SOCKET_USABLE)
        return;  /* the event that ends the session is queued already */
    urs_outbound_close(&reactor->outbox, &session->outbound, frame.code, (const uint8_t *)frame.reason,
                       strlen(frame.reason));
    session->failure = URS_FAILURE_MEMORY;
    urs_session_set_socket(session, URS_SOCKET_END_REPORTED);
    urs_work_event(reactor, session->slot,
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
    size_t bytes_kept_max = max - max / 4;
    scan_sessions(reactor, &scan);
    URS_ASSERT(scan.freed.bytes <= scan.shares.bytes);
    /* A session that only shares a block frees nothing by its end. Such sessions are ended only if the others do not
     * hold enough: then the holders of the largest shares, and with the last holder of a block its memory is free. */
    bool freed_suffices = scan.shares.bytes - scan.freed.bytes <= bytes_kept_max;
    const struct ranking *greediest = freed_suffices ? &scan.freed : &scan.shares;
    /* Memory that belongs to no session (for example memory lent to the kernel) returns by itself: no session is ended
     * for it. */
    for (size_t left = scan.shares.bytes; ended < greediest->count && left > bytes_kept_max; ended++) {
        URS_ASSERT(greediest->holders[ended].bytes <= left);
        evict(reactor, urs_core_session(reactor, greediest->holders[ended].slot));
        left -= greediest->holders[ended].bytes;
    }
    if (ended == 0)
        reactor->budget_scan_ms = reactor->now_ms + URS_DELAY_MS;  /* no session to end: wait before the next scan */
}
