/* The backlog: which segments are kept by reference, and the pong that is replaced. */
#include "backlog.h"

#include <errno.h>
#include <string.h>

#include "frame.h"

enum {
    MOVED_BYTES_MIN = 4096,              /* a smaller message would leave most of its block unused */
    SHARED_BYTES_MIN = 256               /* a copy of less costs no more than a slice */
};

/* Returns true if the segment's block may be kept unchanged. Its bytes must not change, and it must stay charged to the
 * budget: so either it was made for output, or no other reference exists by which Python could come to share it. */
static bool may_be_kept(const struct urs_segment *segment, size_t bytes)
{
    const struct urs_block *block = segment->block;
    if (block == NULL || block->memory == NULL)
        return false;
    return segment->output ? bytes >= SHARED_BYTES_MIN : bytes >= MOVED_BYTES_MIN && urs_block_is_sole(block);
}

static int store_segment(struct urs_session *session, struct urs_memory *memory, struct urs_segment *segment,
                         size_t skip)
{
    uint8_t *data = segment->data + skip;
    size_t bytes = segment->bytes - skip;
    if (bytes == 0)
        return 0;
    if (!may_be_kept(segment, bytes))
        return urs_chain_write(&session->backlog, memory, data, bytes);
    size_t start = (size_t)(data - segment->block->bytes);
    URS_ASSERT(start + bytes <= segment->block->end && segment->block->end <= UINT32_MAX);
    struct urs_slice slice = {
        .block = segment->block, .start = (uint32_t)start, .end = (uint32_t)(start + bytes)};
    int error = urs_chain_push(&session->backlog, memory, slice);
    if (error == 0)
        segment->block = NULL;  /* the backlog has the reference now */
    return error;
}

size_t urs_backlog_drop(struct urs_session *session, const struct urs_topics *topics, struct urs_topic *topic,
                        uint32_t place)
{
    uint32_t at = urs_topic_waiting(topics, topic, place, &session->backlog);
    if (at == UINT32_MAX)
        return 0;
    size_t bytes = urs_slice_bytes(urs_chain_at(&session->backlog, at));
    /* The peer must answer a question after fewer bytes if these were in front of it. */
    if (URS_UNLIKELY(session->question_unsent)) {
        uint32_t end_bytes = session->sent_bytes;
        for (uint32_t index = 0; index <= at; index++)
            end_bytes += (uint32_t)urs_slice_bytes(urs_chain_at(&session->backlog, index));
        if ((int32_t)(session->question_bytes - end_bytes) >= 0)
            session->question_bytes -= (uint32_t)bytes;
    }
    urs_chain_drop(&session->backlog, at);
    return bytes;
}

/* Moves one published frame, without its first `skip` bytes, to the backlog. */
static int store_publication(struct urs_session *session, struct urs_topics *topics, struct urs_memory *memory,
                             struct urs_publication *publication, size_t skip)
{
    struct urs_topic *topic = urs_topics_of(topics, publication);
    uint32_t place = topic == NULL || topic->hints == NULL ? UINT32_MAX : urs_topic_place(topic, session);
    int error = urs_topics_keep(topics, memory, publication);
    if (error != 0)
        return error;
    struct urs_slice slice = publication->kept;
    slice.start += (uint32_t)skip;
    if (place != UINT32_MAX) {
        if (topic->on_full == URS_TOPIC_CONFLATE && urs_backlog_drop(session, topics, topic, place) > 0) {
            topic->stats.queued--;
            topic->stats.conflated++;
        }
        if (urs_chain_is_full(&session->backlog))
            urs_chain_compact(&session->backlog, &session->pong);
        urs_topic_note_next(topic, place, &session->backlog);
    }
    urs_block_hold(slice.block);
    error = urs_chain_push(&session->backlog, memory, slice);
    if (error != 0)
        urs_block_drop(slice.block);
    return error;
}

/* Moves the frames of a segment, without its first `skip` bytes, to the backlog. From an error on, the rest is not moved:
 * `error` is an earlier one. Returns the error. */
static int store_published(struct urs_session *session, struct urs_outbox *outbox, struct urs_topics *topics,
                           struct urs_memory *memory, const struct urs_segment *segment, size_t skip, int error)
{
    const uint8_t *data = segment->data;
    const uint8_t *end = data + segment->bytes;
    for (uint32_t index = segment->published - 1; data != end; index++) {
        URS_ASSERT(index < outbox->publication_count);
        struct urs_publication *publication = &outbox->publications[index];
        if (publication->data != data)
            continue;  /* it lies in a block of its own, and this session does not send it in this segment */
        data += publication->bytes;
        if (skip >= publication->bytes) {
            skip -= publication->bytes;
            continue;
        }
        if (error == 0)
            error = store_publication(session, topics, memory, publication, skip);
        skip = 0;
        struct urs_topic *topic = urs_topics_of(topics, publication);
        if (topic != NULL) {
            URS_ASSERT(topic->stats.sent > 0);
            topic->stats.sent--;
            *(error == 0 ? &topic->stats.queued : &topic->stats.closed) += 1;
        }
    }
    return error;
}

int urs_backlog_store(struct urs_session *session, struct urs_outbox *outbox, struct urs_topics *topics,
                      struct urs_memory *memory, size_t from)
{
    int error = 0;
    URS_ASSERT(from <= session->outbound.bytes);
    for (uint32_t index = session->outbound.first; index != 0;) {
        struct urs_segment *segment = &outbox->segments[index - 1];
        size_t skip = urs_min(from, segment->bytes);
        from -= skip;
        if (segment->published != 0)
            error = store_published(session, outbox, topics, memory, segment, skip, error);
        else if (error == 0)
            error = store_segment(session, memory, segment, skip);
        index = segment->next;
    }
    urs_outbound_clear(outbox, &session->outbound);
    return error;
}

void urs_backlog_discard(struct urs_session *session, struct urs_outbox *outbox, struct urs_topics *topics)
{
    for (uint32_t index = session->outbound.first; index != 0; index = outbox->segments[index - 1].next)
        if (outbox->segments[index - 1].published != 0)
            store_published(session, outbox, topics, NULL, &outbox->segments[index - 1], 0, -ECONNABORTED);
    urs_outbound_clear(outbox, &session->outbound);
}

/* Returns the slice of the pong that may be replaced, or NULL. */
static struct urs_slice *waiting_pong(const struct urs_session *session)
{
    uint32_t place = session->pong - session->backlog.first;
    if (!session->pong_waits || place >= session->backlog.count)
        return NULL;
    struct urs_slice *slice = urs_chain_at(&session->backlog, place);
    return slice->block != NULL && slice->start == URS_BLOCK_HEADROOM ? slice : NULL;
}

int urs_backlog_store_pong(struct urs_session *session, struct urs_memory *memory, const uint8_t *payload,
                           size_t bytes)
{
    enum { PONG_BYTES_MAX = URS_FRAME_ANSWER_BYTES_MAX + URS_FRAME_CONTROL_BYTES_MAX };
    uint8_t frame[PONG_BYTES_MAX];
    URS_ASSERT(session->backlog.bytes > 0 && bytes <= URS_FRAME_CONTROL_BYTES_MAX);
    size_t frame_bytes = urs_frame_write(frame, URS_OPCODE_PONG, true, bytes);
    memcpy(frame + frame_bytes, payload, bytes);
    frame_bytes += bytes;
    struct urs_slice *slice = waiting_pong(session);
    if (slice != NULL) {
        memcpy(urs_slice_data(slice), frame, frame_bytes);
        session->backlog.bytes += frame_bytes - urs_slice_bytes(slice);
        slice->end = slice->start + (uint32_t)frame_bytes;
        return 0;
    }
    struct urs_block *block = urs_block_new(memory, PONG_BYTES_MAX);
    if (block == NULL)
        return urs_memory_error(memory, PONG_BYTES_MAX);
    urs_block_seal(block);  /* no later bytes follow in it, because the pong may grow */
    struct urs_slice fresh = {.block = block, .start = URS_BLOCK_HEADROOM,
                              .end = URS_BLOCK_HEADROOM + (uint32_t)frame_bytes};
    memcpy(urs_slice_data(&fresh), frame, frame_bytes);
    int error = urs_chain_push(&session->backlog, memory, fresh);
    if (error != 0) {
        urs_block_drop(block);
        return error;
    }
    session->pong = session->backlog.first + session->backlog.count - 1;
    session->pong_waits = true;
    return 0;
}

uint32_t urs_backlog_vectors(const struct urs_session *session, struct iovec *vectors, uint32_t room)
{
    uint32_t count = 0;
    for (uint32_t place = 0; place < session->backlog.count && count < room; place++) {
        const struct urs_slice *slice = urs_chain_at(&session->backlog, place);
        if (slice->block != NULL)
            vectors[count++] = (struct iovec){.iov_base = urs_slice_data(slice), .iov_len = urs_slice_bytes(slice)};
    }
    return count;
}

void urs_backlog_consume(struct urs_session *session, size_t bytes)
{
    urs_chain_consume(&session->backlog, bytes);
    if (session->pong - session->backlog.first >= session->backlog.count)
        session->pong_waits = false;
}
