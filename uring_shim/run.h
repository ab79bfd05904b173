/* The run: frames that one topic publishes directly after one another. The members' segments are lengthened once, when
 * the run is sealed, and not for each frame. Until then their segments and byte counts do not contain the frames after
 * the first one. So the run must be sealed before a member's output or membership is read or changed. */
#ifndef URS_RUN_H
#define URS_RUN_H

#include "core.h"

/* Begins a run with the publication that every member of the topic, except those in the slot `skipped` (UINT32_MAX:
 * none), has just taken. `room` bytes fit into each member's backlog after it. No run may be open. */
void urs_run_begin(struct urs_reactor *reactor, const struct urs_topic *topic,
                   const struct urs_publication *publication, uint32_t skipped, size_t room);

/* Returns true if a frame of the topic with a payload of `bytes` bytes may lengthen the open run: it will follow the last
 * one in the arena, and each member's backlog has room for it. */
bool urs_run_takes(const struct urs_reactor *reactor, const struct urs_topic *topic, size_t bytes);

/* Lengthens the run by a publication, for all members except the one in the slot `skipped`. urs_run_takes has said yes,
 * and URS_RUN_SEGMENTS segments are reserved. */
void urs_run_extend(struct urs_reactor *reactor, const struct urs_publication *publication, uint32_t skipped);

enum { URS_RUN_SEGMENTS = 2 };           /* the most segments that urs_run_extend adds */

void urs_run_seal_open(struct urs_reactor *reactor);

/* Ends the run, if one is open: every member's list is complete then. */
static inline void urs_run_seal(struct urs_reactor *reactor)
{
    if (URS_UNLIKELY(reactor->run.topic != 0))
        urs_run_seal_open(reactor);
}

#endif
