/* Carries out what the events of a turn ask for: echoes, pongs, close frames and ends, in wire order. */
#ifndef URS_APPLY_H
#define URS_APPLY_H

#include "core.h"

#define URS_NO_EVENT UINT32_MAX

/* Applies the events with an index below `until`: sends their echoes, pongs and close frames, and ends sessions, in
 * wire order. An `until` larger than the number of events means the number of events that Python has handled. `in_hand`
 * is the index of a message whose handler has not returned yet, so that its payload must not change; URS_NO_EVENT for
 * none. */
void urs_apply_events(struct urs_reactor *reactor, uint32_t until, uint32_t in_hand);

/* Queues the echo of one message, whose flag is set, before its turn comes: its handler is still reading the payloads of
 * several messages. The payload keeps its place and its bytes, and the flag is cleared. */
void urs_apply_echo(struct urs_reactor *reactor, uint32_t index);

#endif
