/* Zero-copy sends: which bytes are lent to the kernel, for how long, and when lending pays off.
 *
 * Only whole segments that lie in the registered pool or in a block of their own are lent, never the arena, which the
 * next turn overwrites. At most a quarter of the pool is lent at a time. Under "auto" a session whose path copies
 * anyway (loopback always does) returns to plain sends for the rest of its life. */
#include "zero_copy.h"

#include <errno.h>
#include <stdlib.h>

enum { LOAN_SHARE = 4 };

int urs_zero_copy_open(struct urs_reactor *reactor, bool registered)
{
    uint32_t count = reactor->pool.buffers / LOAN_SHARE;
    if (!registered || reactor->options.zero_copy == URS_ZERO_COPY_NEVER || count == 0
        || reactor->io->operations->send_zero_copy == NULL)
        return 0;
    reactor->loans = calloc(count, sizeof *reactor->loans);
    reactor->lent = calloc(reactor->pool.buffers, sizeof *reactor->lent);
    if (reactor->loans == NULL || reactor->lent == NULL)
        return -ENOMEM;
    for (uint32_t token = 0; token < count; token++)
        reactor->loans[token].next_free = token + 1 < count ? token + 2 : 0;
    reactor->loan_free = 1;
    return 0;
}

void urs_zero_copy_close(struct urs_reactor *reactor)
{
    for (uint32_t token = 0; reactor->loans != NULL && token < reactor->pool.buffers / LOAN_SHARE; token++)
        urs_block_abandon(reactor->loans[token].block);
    free(reactor->loans);
    free(reactor->lent);
}

static void end_loan(struct urs_reactor *reactor, uint32_t token)
{
    URS_ASSERT(token < reactor->pool.buffers / LOAN_SHARE);
    struct urs_loan *loan = &reactor->loans[token];
    URS_ASSERT(!loan->sending && (loan->block != NULL || reactor->lent[loan->buffer] != URS_LENT_NOT));
    if (loan->block == NULL) {
        if (reactor->lent[loan->buffer] == URS_LENT_BEYOND)
            reactor->io->operations->release(reactor->io, loan->buffer);
        reactor->lent[loan->buffer] = URS_LENT_NOT;
    }
    urs_block_drop(loan->block);
    *loan = (struct urs_loan){.next_free = reactor->loan_free};
    reactor->loan_free = token + 1;
}

int urs_zero_copy_send(struct urs_reactor *reactor, struct urs_session *session)
{
    const struct urs_segment *segment = &reactor->outbox.segments[session->outbound.first - 1];
    size_t offset = (size_t)(segment->data - reactor->pool.memory);
    bool in_pool = segment->block == NULL;
    bool alone = session->outbound.first == session->outbound.last;
    bool large = reactor->options.zero_copy == URS_ZERO_COPY_ALWAYS
        || segment->bytes >= reactor->options.zero_copy_bytes_min;
    if (reactor->options.zero_copy == URS_ZERO_COPY_NEVER || reactor->loan_free == 0 || !alone || !large
        || session->zero_copy_failed)
        return -ENOTSUP;
    uint32_t buffer = 0;
    if (in_pool) {
        if (segment->data < reactor->pool.memory || offset >= reactor->pool.stride * reactor->pool.buffers)
            return -ENOTSUP;  /* the segment lies in the arena */
        buffer = (uint32_t)(offset / reactor->pool.stride);
        if ((offset + segment->bytes - 1) / reactor->pool.stride != buffer || reactor->lent[buffer] != URS_LENT_NOT)
            return -ENOTSUP;
    }
    uint32_t token = reactor->loan_free - 1;
    int error = reactor->io->operations->send_zero_copy(reactor->io, token, session->fd, segment->data,
                                                        segment->bytes, in_pool);
    if (error != 0)
        return error;
    struct urs_loan *loan = &reactor->loans[token];
    reactor->loan_free = loan->next_free;
    *loan = (struct urs_loan){.id = urs_session_id(session), .buffer = (uint16_t)buffer, .sending = true};
    if (in_pool) {
        reactor->lent[buffer] = URS_LENT_IN_TURN;
    } else {
        loan->block = segment->block;
        urs_block_hold(segment->block);
    }
    return 0;
}

struct urs_session *urs_zero_copy_sent(struct urs_reactor *reactor, const struct urs_completion *completion,
                                       bool *refused)
{
    int32_t result = completion->result;
    struct urs_loan *loan = &reactor->loans[completion->slot];
    struct urs_session *session = urs_session_find(&reactor->sessions, loan->id);
    URS_ASSERT(loan->sending);
    loan->sending = false;
    /* Kernels before 6.2 refuse every zero-copy send (EINVAL). Unix sockets (EOPNOTSUPP), and sockets without lockable
     * memory (ENOMEM), refuse their own. */
    *refused = result == -EINVAL || result == -EOPNOTSUPP || result == -ENOMEM;
    if (result == -EINVAL)
        reactor->options.zero_copy = URS_ZERO_COPY_NEVER;
    if (*refused && session != NULL)
        session->zero_copy_failed = true;
    reactor->stats.zero_copy_sends += result >= 0;
    if (!completion->more)
        end_loan(reactor, completion->slot);
    return session;
}

void urs_zero_copy_release(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    const struct urs_loan *loan = &reactor->loans[completion->slot];
    struct urs_session *session = urs_session_find(&reactor->sessions, loan->id);
    reactor->stats.zero_copy_copied += completion->result != 0;
    if (session != NULL && completion->result != 0 && reactor->options.zero_copy == URS_ZERO_COPY_AUTO)
        session->zero_copy_failed = true;
    end_loan(reactor, completion->slot);
}
