/* Checks the invariants of a whole reactor between two steps of a turn. Reads everything, changes nothing; only builds
 * with URS_ASSERTIONS contain it. */
#ifndef URS_INVARIANTS_H
#define URS_INVARIANTS_H

#include "core.h"

#ifdef URS_ASSERTIONS

/* Aborts if an invariant of the reactor or of one of its sessions does not hold. Every send must have completed. Checks
 * all sessions while there are few, and not in every call when there are many. */
void urs_invariants_check(const struct urs_reactor *reactor);

#else

static inline void urs_invariants_check(const struct urs_reactor *reactor) { (void)reactor; }

#endif

#endif
