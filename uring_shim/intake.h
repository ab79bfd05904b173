/* Receives: which sessions have one armed, which must wait while buffers are short, and which have missed a reset. */
#ifndef URS_INTAKE_H
#define URS_INTAKE_H

#include "core.h"

/* Arms a receive if the session wants input and none is armed. Cancels the armed receive if the session wants no
 * input. */
void urs_intake_receive(struct urs_reactor *reactor, struct urs_session *session);

/* Cancels the session's receive if one is armed. Its last completion still follows. */
void urs_intake_stop(struct urs_reactor *reactor, struct urs_session *session);

/* The number of sessions that wait for a receive buffer. */
static inline uint32_t urs_intake_waiting(const struct urs_reactor *reactor)
{
    return reactor->lively.count + reactor->heavy.count;
}

static inline uint32_t urs_intake_free_buffers(const struct urs_reactor *reactor)
{
    return reactor->pool.buffers - reactor->pool.in_use;
}

/* Records that a receive found no buffer. */
void urs_intake_shortage(struct urs_reactor *reactor);

/* Whether a session that wants input must queue for a buffer: another session waits already, or one did a few turns
 * ago. */
bool urs_intake_is_short(const struct urs_reactor *reactor);

/* Records how many bytes the session's last receive brought. This decides in which queue the session waits next
 * time. */
void urs_intake_measure(const struct urs_reactor *reactor, struct urs_session *session, size_t bytes);

/* Records that a receive brought data and stays armed. Unless a send follows, the socket must be checked for a reset
 * later. */
static inline void urs_intake_doubt(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!reactor->io->operations->misses_resets)
        return;
    session->unsure = true;
    if (reactor->resets_due_ms == 0)
        reactor->resets_due_ms = reactor->now_ms + URS_RESETS_MS;
    else if (session->slot < reactor->resets_slot)
        reactor->resets_again = true;
}

/* Checks, once the time for it has come, for resets that receives have missed. It cancels the receives of these
 * sessions; their next receives report the resets. */
void urs_intake_find_resets(struct urs_reactor *reactor);

/* Arms waiting sessions in order, at most one per free buffer. */
void urs_intake_serve(struct urs_reactor *reactor);

#endif
