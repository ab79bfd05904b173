/* Judges the clocks of sessions: pings, pongs, idle peers and deadlines. docs/deadlines.md has the table. */
#ifndef URS_UPKEEP_H
#define URS_UPKEEP_H

#include "core.h"

/* Takes the pong that a client sent. */
void urs_upkeep_pong(struct urs_reactor *reactor, struct urs_session *session, const struct urs_item *item);

/* Counts the sessions that await the peer's close frame and have unread input. */
uint32_t urs_upkeep_unread(struct urs_reactor *reactor);

/* Checks the sessions whose timers are due, a bounded number per call. */
void urs_upkeep_run(struct urs_reactor *reactor);

#endif
