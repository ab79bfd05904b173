/* Descriptors of others whose readiness ends a turn. The calls from Python are in reactor.h. */
#ifndef URS_WATCH_H
#define URS_WATCH_H

#include "core.h"

/* Arms the watches that are not armed, and stops those that were cancelled. */
void urs_watch_arm(struct urs_reactor *reactor);

/* URS_DELAY_MS have passed since a watch could not be armed: it is armed again. */
void urs_watch_retry(struct urs_reactor *reactor);

/* Handles a completion of kind URS_IO_WATCH. */
void urs_watch_completed(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Frees all watches. The backend must be closed already. */
void urs_watch_close(struct urs_reactor *reactor);

#endif
