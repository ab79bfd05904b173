/* Sessions: the slot table, the backlog, held input. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

enum { BACKLOG_BLOCK_BYTES_MIN = 4096, BACKLOG_BLOCK_BYTES_MAX = 1 << 18, BACKLOG_SHARE = 4, MOVE_BYTES_MIN = 4096 };

struct urs_session *urs_session_find(const struct urs_sessions *sessions, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= sessions->slots)
        return NULL;
    struct urs_session *session = urs_session_at(sessions, slot);
    bool in_use = session->state != URS_SESSION_FREE;
    return in_use && session->generation == (uint32_t)(id >> 32) ? session : NULL;
}

#define BIT(state) (1u << (state))

void urs_session_set_state(struct urs_session *session, enum urs_session_state state)
{
    /* The states that may follow each state. A session only moves down this list. In every state it may lose its
     * socket. */
    static const uint8_t next[] = {
        [URS_SESSION_FREE] = BIT(URS_SESSION_AWAIT_HEAD),
        [URS_SESSION_AWAIT_HEAD] = BIT(URS_SESSION_AWAIT_VERDICT) | BIT(URS_SESSION_OPEN)  /* adopted */
            | BIT(URS_SESSION_AWAIT_FLUSH) | BIT(URS_SESSION_AWAIT_REQUESTS) | BIT(URS_SESSION_FREE),
        [URS_SESSION_AWAIT_VERDICT] = BIT(URS_SESSION_OPEN) | BIT(URS_SESSION_AWAIT_FLUSH)
            | BIT(URS_SESSION_AWAIT_REQUESTS),
        [URS_SESSION_OPEN] = BIT(URS_SESSION_AWAIT_CLOSE) | BIT(URS_SESSION_AWAIT_FLUSH)
            | BIT(URS_SESSION_AWAIT_REQUESTS),
        [URS_SESSION_AWAIT_CLOSE] = BIT(URS_SESSION_AWAIT_FLUSH) | BIT(URS_SESSION_AWAIT_REQUESTS),
        [URS_SESSION_AWAIT_FLUSH] = BIT(URS_SESSION_AWAIT_END) | BIT(URS_SESSION_AWAIT_REQUESTS),
        [URS_SESSION_AWAIT_END] = BIT(URS_SESSION_AWAIT_REQUESTS),
        [URS_SESSION_AWAIT_REQUESTS] = BIT(URS_SESSION_FREE),
    };
    URS_ASSERT(session->state < URS_COUNT(next));
    URS_ASSERT((next[session->state] & BIT(state)) != 0);
    (void)next;
    session->state = (uint8_t)state;
}

struct urs_close urs_failure_close(enum urs_failure failure)
{
    static const struct urs_close closes[] = {
        [URS_FAILURE_NONE] = {URS_CLOSE_ABNORMAL, ""},
        [URS_FAILURE_BACKLOG] = {URS_CLOSE_POLICY_VIOLATION, "backlog full"},
        [URS_FAILURE_IDLE] = {URS_CLOSE_GOING_AWAY, "idle"},
        [URS_FAILURE_AGE] = {URS_CLOSE_GOING_AWAY, "session time is over"},
        [URS_FAILURE_MEMORY] = {URS_CLOSE_MESSAGE_TOO_BIG, "server out of memory"},
    };
    URS_ASSERT(failure < URS_FAILURES);
    return closes[failure];
}

static int add_slab(struct urs_sessions *sessions)
{
    if ((sessions->slab_count & (sessions->slab_count - 1)) == 0) {
        size_t room = urs_max(1, 2 * (size_t)sessions->slab_count);
        struct urs_session **slabs = realloc(sessions->slabs, room * sizeof *slabs);
        if (slabs == NULL)
            return -ENOMEM;
        sessions->slabs = slabs;
    }
    struct urs_session *slab = calloc(URS_SLAB_SESSIONS, sizeof *slab);
    if (slab == NULL)
        return -ENOMEM;
    sessions->slabs[sessions->slab_count++] = slab;
    return 0;
}

struct urs_session *urs_session_new(struct urs_sessions *sessions, int fd)
{
    struct urs_session *session;
    uint32_t slot;
    if (sessions->free_first != 0) {
        slot = sessions->free_first - 1;
        session = urs_session_at(sessions, slot);
        sessions->free_first = session->next_slot;
    } else {
        slot = sessions->slots;
        if (slot >> URS_SLAB_SESSIONS_LOG2 == sessions->slab_count && add_slab(sessions) != 0)
            return NULL;
        sessions->slots++;
        session = urs_session_at(sessions, slot);
    }
    uint32_t generation = session->generation + 1;
    URS_ASSERT(session->state == URS_SESSION_FREE && (generation & 1) == 1);
    *session = (struct urs_session){.fd = fd, .slot = slot, .generation = generation, .latency_seconds = -1.0f};
    urs_session_set_state(session, URS_SESSION_AWAIT_HEAD);
    sessions->in_use++;
    if (sessions->in_use > sessions->in_use_max)
        sessions->in_use_max = sessions->in_use;
    return session;
}

void urs_session_free(struct urs_sessions *sessions, struct urs_session *session)
{
    URS_ASSERT(!session->receiving && !session->polling && !session->sending && session->late_events == 0);
    URS_ASSERT(sessions->in_use > 0);
    urs_session_drop_memory(session);
    session->fd = -1;
    urs_session_set_state(session, URS_SESSION_FREE);
    session->generation++;
    sessions->in_use--;
    /* All 2^31 generations are used: the next one would repeat an id, so the slot is never used again. */
    if (session->generation == 0)
        return;
    session->next_slot = sessions->free_first;
    sessions->free_first = session->slot + 1;
}

void urs_sessions_close(struct urs_sessions *sessions)
{
    for (uint32_t index = 0; index < sessions->slab_count; index++)
        free(sessions->slabs[index]);
    free(sessions->slabs);
    *sessions = (struct urs_sessions){0};
}

static void append_block(struct urs_session *session, struct urs_block *block)
{
    URS_ASSERT((session->backlog == NULL) == (session->backlog_last == NULL));
    block->next = NULL;
    if (session->backlog_last == NULL)
        session->backlog = block;
    else
        session->backlog_last->next = block;
    session->backlog_last = block;
}

static int store_bytes(struct urs_session *session, struct urs_memory *memory, const uint8_t *data, size_t bytes)
{
    struct urs_block *last = session->backlog_last;
    session->backlog_bytes += bytes;
    if (last != NULL && urs_block_is_sole(last)) {
        size_t part = urs_min(bytes, urs_block_room(last));
        memcpy(last->bytes + last->end, data, part);
        last->end += part;
        data += part;
        bytes -= part;
    }
    if (bytes == 0)
        return 0;
    /* The longer the backlog, the larger its blocks: at most a quarter of the backlog is spare room, and large blocks
     * are freed in pages. */
    size_t spare = urs_min(session->backlog_bytes / BACKLOG_SHARE, BACKLOG_BLOCK_BYTES_MAX);
    struct urs_block *block = urs_block_new(memory, urs_max(bytes, urs_max(spare, BACKLOG_BLOCK_BYTES_MIN)));
    if (block == NULL)
        block = urs_block_new(memory, bytes);
    if (block == NULL) {
        session->backlog_bytes -= bytes;
        return urs_memory_error(memory, bytes);
    }
    memcpy(block->bytes + block->end, data, bytes);
    block->end += bytes;
    append_block(session, block);
    return 0;
}

/* Returns true if the segment's block may be moved into the backlog unchanged: no other reference to it exists. */
static bool movable(const struct urs_segment *segment, size_t bytes)
{
    return segment->block != NULL && segment->block->memory != NULL && bytes >= MOVE_BYTES_MIN
        && urs_block_is_sole(segment->block);
}

int urs_session_store(struct urs_session *session, struct urs_outbox *outbox, struct urs_memory *memory, size_t from)
{
    int error = 0;
    for (uint32_t index = session->outbound.first; index != 0; index = outbox->segments[index - 1].next) {
        struct urs_segment *segment = &outbox->segments[index - 1];
        size_t skip = urs_min(from, segment->bytes);
        uint8_t *data = segment->data + skip;
        size_t bytes = segment->bytes - skip;
        from -= skip;
        if (error != 0 || bytes == 0)
            continue;
        if (movable(segment, bytes)) {
            segment->block->start = (size_t)(data - segment->block->bytes);
            segment->block->end = segment->block->start + bytes;
            append_block(session, segment->block);
            session->backlog_bytes += bytes;
            segment->block = NULL;
        } else {
            error = store_bytes(session, memory, data, bytes);
        }
    }
    urs_outbound_clear(outbox, &session->outbound);
    return error;
}

int urs_session_store_pong(struct urs_session *session, struct urs_memory *memory, const uint8_t *payload,
                           size_t bytes)
{
    URS_ASSERT(session->backlog != NULL && bytes <= URS_FRAME_CONTROL_BYTES_MAX);
    struct urs_block *pong = session->pong;
    /* If the backlog has dropped its reference, this one is the only one. */
    bool waits = pong != NULL && !urs_block_is_sole(pong) && pong->start == URS_BLOCK_HEADROOM;
    if (!waits) {
        struct urs_block *fresh = urs_block_new(memory, URS_FRAME_ANSWER_BYTES_MAX + URS_FRAME_CONTROL_BYTES_MAX);
        if (fresh == NULL)
            return urs_memory_error(memory, URS_FRAME_ANSWER_BYTES_MAX + URS_FRAME_CONTROL_BYTES_MAX);
        urs_block_drop(pong);
        session->pong = pong = fresh;
        urs_block_hold(pong);  /* this also keeps later bytes from being appended to the block */
        append_block(session, pong);
    }
    session->backlog_bytes -= urs_block_bytes(pong);
    size_t header_bytes = urs_frame_write(urs_block_data(pong), URS_OPCODE_PONG, true, bytes);
    memcpy(urs_block_data(pong) + header_bytes, payload, bytes);
    pong->end = pong->start + header_bytes + bytes;
    session->backlog_bytes += urs_block_bytes(pong);
    return 0;
}

uint32_t urs_session_backlog_vectors(const struct urs_session *session, struct iovec *vectors, uint32_t room)
{
    uint32_t count = 0;
    for (struct urs_block *block = session->backlog; block != NULL && count < room; block = block->next)
        vectors[count++] = (struct iovec){.iov_base = urs_block_data(block), .iov_len = urs_block_bytes(block)};
    return count;
}

void urs_session_backlog_consume(struct urs_session *session, size_t bytes)
{
    URS_ASSERT(bytes <= session->backlog_bytes);
    session->backlog_bytes -= bytes;
    while (session->backlog != NULL) {
        struct urs_block *block = session->backlog;
        size_t part = urs_min(bytes, urs_block_bytes(block));
        block->start += part;
        bytes -= part;
        if (urs_block_bytes(block) > 0)
            return;
        session->backlog = block->next;
        urs_block_drop(block);
    }
    URS_ASSERT(bytes == 0 && session->backlog_bytes == 0);
    session->backlog_last = NULL;
    urs_block_drop(session->pong);
    session->pong = NULL;
}

int urs_session_hold(struct urs_session *session, struct urs_memory *memory, const uint8_t *data, size_t bytes)
{
    size_t have = session->held == NULL ? 0 : urs_block_bytes(session->held);
    int error = urs_block_reserve(memory, &session->held, bytes, 2 * (have + bytes));
    if (error != 0)
        return error;
    URS_ASSERT(bytes > 0 && urs_block_room(session->held) >= bytes);
    memcpy(session->held->bytes + session->held->end, data, bytes);
    session->held->end += bytes;
    return 0;
}

/* A block that Python shares is charged to no budget. */
static size_t charged_bytes(const struct urs_block *block)
{
    return block == NULL || block->memory == NULL ? 0 : block->capacity;
}

size_t urs_session_memory_bytes(const struct urs_session *session)
{
    size_t bytes = charged_bytes(session->held) + charged_bytes(session->engine.partial)
        + charged_bytes(session->engine.control);
    for (const struct urs_block *block = session->backlog; block != NULL; block = block->next)
        bytes += charged_bytes(block);
    return bytes;
}

void urs_session_drop_memory(struct urs_session *session)
{
    urs_session_backlog_consume(session, session->backlog_bytes);
    urs_block_drop(session->held);
    session->held = NULL;
    urs_engine_clear(&session->engine);
}
