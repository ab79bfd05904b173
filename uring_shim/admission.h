/* The way into the reactor: accepting, limits, refusals, and the head of the opening request. */
#ifndef URS_ADMISSION_H
#define URS_ADMISSION_H

#include "core.h"

/* Refuses a session whose request has not been answered: counts the refusal, queues the answer, and ends the session
 * once the answer is sent. */
void urs_admission_refuse(struct urs_reactor *reactor, struct urs_session *session, enum urs_refusal why);

/* Handles the completion of an accept: a new connection, or the end of accepting (temporary or final). */
void urs_admission_accepted(struct urs_reactor *reactor, const struct urs_completion *completion);

/* Arms an accept on every listening socket that has none armed, and ends that of a socket that is closing. */
void urs_admission_arm(struct urs_reactor *reactor);

/* Takes bytes of an opening request. */
void urs_admission_head(struct urs_reactor *reactor, struct urs_session *session, uint8_t *data, size_t bytes);

#endif
