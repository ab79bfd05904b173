/* The lists of the work that a turn has to do, its clock and its events. Every other file of the reactor adds to them. */
#ifndef URS_WORK_H
#define URS_WORK_H

#include "core.h"

/* Schedules a retry in URS_DELAY_MS, unless one is scheduled already: postponing it each time would starve the sessions
 * that wait already. */
static inline void urs_work_schedule_retry(struct urs_reactor *reactor)
{
    if (reactor->retry_at_ms == 0)
        reactor->retry_at_ms = reactor->now_ms + URS_DELAY_MS;
}

/* Arms a receive again after URS_DELAY_MS. None may be armed. */
void urs_work_retry_receive(struct urs_reactor *reactor, struct urs_session *session);

/* Sends again after URS_DELAY_MS. No send may be in flight. */
void urs_work_retry_send(struct urs_reactor *reactor, struct urs_session *session);

/* Puts a session on the list of sessions that have something to send or to end. */
static inline void urs_work_dirty(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!urs_session_is_on(session, URS_LIST_DIRTY))
        urs_slots_add(&reactor->dirty, session, URS_LIST_DIRTY);
}

/* Puts a session that has a published message to send on the list of sessions that are flushed in slices, unless it is to
 * be flushed in this turn anyway. */
static inline void urs_work_fanout(struct urs_reactor *reactor, struct urs_session *session)
{
    if ((session->lists & (URS_LIST_DIRTY | URS_LIST_FANOUT)) == 0)
        urs_slots_add(&reactor->fanout, session, URS_LIST_FANOUT);
}

/* Gives held input to the engine as soon as the turn has room. */
static inline void urs_work_queue_feed(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!urs_session_is_on(session, URS_LIST_FEED))
        urs_slots_add(&reactor->feed_list, session, URS_LIST_FEED);
}

/* Adds an event for Python. While Python handles the events of a turn, the new event belongs to the next turn. */
void urs_work_event(struct urs_reactor *reactor, uint32_t slot, const struct urs_item *item);

/* Reads the clock. */
void urs_work_clock(struct urs_reactor *reactor);

#endif
