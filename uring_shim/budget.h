/* The memory budget of the reactor. */
#ifndef URS_BUDGET_H
#define URS_BUDGET_H

#include "core.h"

/* Enforces the memory budget: when it is nearly used up, ends the sessions that hold the most, until the sessions
 * together hold at most three quarters of it. Scans the sessions at most once per call. */
void urs_budget_enforce(struct urs_reactor *reactor);

#endif
