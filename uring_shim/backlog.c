/* The backlog: which segments are kept by reference, and the pong that is replaced. */
#include "backlog.h"

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

int urs_backlog_store(struct urs_session *session, struct urs_outbox *outbox, struct urs_memory *memory, size_t from)
{
    int error = 0;
    URS_ASSERT(from <= session->outbound.bytes);
    for (uint32_t index = session->outbound.first; index != 0 && error == 0;) {
        struct urs_segment *segment = &outbox->segments[index - 1];
        size_t skip = urs_min(from, segment->bytes);
        from -= skip;
        error = store_segment(session, memory, segment, skip);
        index = segment->next;
    }
    urs_outbound_clear(outbox, &session->outbound);
    return error;
}

/* Returns the slice of the pong that may be replaced, or NULL. */
static struct urs_slice *waiting_pong(const struct urs_session *session)
{
    uint32_t place = session->pong - session->backlog.first;
    if (!session->pong_waits || place >= session->backlog.count)
        return NULL;
    struct urs_slice *slice = urs_chain_at(&session->backlog, place);
    return slice->start == URS_BLOCK_HEADROOM ? slice : NULL;
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
    uint32_t count = (uint32_t)urs_min(session->backlog.count, room);
    for (uint32_t place = 0; place < count; place++) {
        const struct urs_slice *slice = urs_chain_at(&session->backlog, place);
        vectors[place] = (struct iovec){.iov_base = urs_slice_data(slice), .iov_len = urs_slice_bytes(slice)};
    }
    return count;
}

void urs_backlog_consume(struct urs_session *session, size_t bytes)
{
    urs_chain_consume(&session->backlog, bytes);
    if (session->pong - session->backlog.first >= session->backlog.count)
        session->pong_waits = false;
}
