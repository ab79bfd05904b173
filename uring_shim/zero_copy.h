/* Sends whose bytes the kernel reads in place: receive buffers and blocks that are lent to it. */
#ifndef URS_ZERO_COPY_H
#define URS_ZERO_COPY_H

#include "core.h"

/* Prepares loans if the backend supports them and the options allow them. Returns 0 or -ENOMEM. */
int urs_zero_copy_open(struct urs_reactor *reactor, bool registered);

void urs_zero_copy_close(struct urs_reactor *reactor);

/* Queues the session's segments as a zero-copy send. Returns 0, -EBUSY as `send` does, or -ENOTSUP if the caller must
 * use a plain send. */
int urs_zero_copy_send(struct urs_reactor *reactor, struct urs_session *session);

/* Handles the completion of a zero-copy send. Returns its session, or NULL if the session is gone. Sets *refused if
 * nothing was sent: the caller must send the same bytes plainly, and the session makes no further zero-copy sends.
 * Without `more` the loan has ended. */
struct urs_session *urs_zero_copy_sent(struct urs_reactor *reactor, const struct urs_completion *completion,
                                       bool *refused);

/* Handles the kernel's notification that it no longer reads the bytes of a loan. */
void urs_zero_copy_release(struct urs_reactor *reactor, const struct urs_completion *completion);

#endif
