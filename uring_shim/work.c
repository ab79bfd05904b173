/* The lists of the work that a turn has to do, its clock and its events. Nothing here does the work. */
#include "work.h"

#include <time.h>

void urs_work_clock(struct urs_reactor *reactor)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    reactor->now_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    reactor->now_ms = reactor->now_us / 1000;
}

/* Puts a session on the list of retries. A lack of memory for its receives does not stop its sends, nor the other way
 * round. */
static void list_retry(struct urs_reactor *reactor, struct urs_session *session)
{
    if (urs_session_is_on(session, URS_LIST_RETRIES))
        return;
    urs_slots_add(&reactor->retries, session, URS_LIST_RETRIES);
    urs_work_schedule_retry(reactor);
}

void urs_work_retry_receive(struct urs_reactor *reactor, struct urs_session *session)
{
    list_retry(reactor, session);
    urs_session_set_receive(session, URS_RECEIVE_AWAITS_RETRY);
}

void urs_work_retry_send(struct urs_reactor *reactor, struct urs_session *session)
{
    list_retry(reactor, session);
    urs_session_set_send(session, URS_SEND_AWAITS_RETRY);
}

void urs_work_event(struct urs_reactor *reactor, uint32_t slot, const struct urs_item *item)
{
    if (reactor->dispatching && reactor->event_count < URS_EVENTS_MAX) {
        reactor->events[reactor->event_count] = (struct urs_event){.item = *item, .slot = slot};
        reactor->targets[reactor->event_count++] = URS_TARGET_OTHER;
        reactor->visible++;
    } else if (reactor->late_count < reactor->late_room) {
        reactor->late[reactor->late_count++] = (struct urs_event){.item = *item, .slot = slot};
        urs_core_session(reactor, slot)->late_events++;
    } else {
        /* The lists have room for every event that a session can cause (LATE_EVENTS), so this cannot happen. A session
         * whose end is not reported would stay for ever, so the whole reactor reports the fault instead. */
        URS_ASSERT(false);
        reactor->broken = true;
    }
}
