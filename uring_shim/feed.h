/* The way in: received bytes pass through the engine of their session and become events. */
#ifndef URS_FEED_H
#define URS_FEED_H

#include "core.h"

/* Handles the completion of a receive. */
void urs_feed_received(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Feeds held input: at most one receive's worth per session and turn. Half of the turn's message slots stay free for
 * newer input of other sessions. */
void urs_feed_held(struct urs_reactor *reactor);

#endif
