/* Sessions: the slot table, states, held input. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>

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
        [URS_SESSION_AWAIT_HEAD] = BIT(URS_SESSION_AWAIT_DECISION) | BIT(URS_SESSION_OPEN)  /* adopted */
            | BIT(URS_SESSION_AWAIT_FLUSH) | BIT(URS_SESSION_AWAIT_REQUESTS) | BIT(URS_SESSION_FREE),
        [URS_SESSION_AWAIT_DECISION] = BIT(URS_SESSION_OPEN) | BIT(URS_SESSION_AWAIT_FLUSH)
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

bool urs_receive_may_become(enum urs_receive_state from, enum urs_receive_state to)
{
    static const uint8_t next[] = {
        [URS_RECEIVE_IDLE] = BIT(URS_RECEIVE_ARMED) | BIT(URS_RECEIVE_AWAITS_BUFFER) | BIT(URS_RECEIVE_AWAITS_RETRY),
        [URS_RECEIVE_ARMED] = BIT(URS_RECEIVE_CANCELLING) | BIT(URS_RECEIVE_IDLE),
        [URS_RECEIVE_CANCELLING] = BIT(URS_RECEIVE_IDLE),
        [URS_RECEIVE_AWAITS_BUFFER] = BIT(URS_RECEIVE_IDLE),
        [URS_RECEIVE_AWAITS_RETRY] = BIT(URS_RECEIVE_IDLE),
    };
    return from < URS_COUNT(next) && (next[from] & BIT(to)) != 0;
}

bool urs_send_may_become(enum urs_send_state from, enum urs_send_state to)
{
    static const uint8_t next[] = {
        [URS_SEND_IDLE] = BIT(URS_SEND_SEGMENTS) | BIT(URS_SEND_BACKLOG) | BIT(URS_SEND_AWAITS_WRITABLE)
            | BIT(URS_SEND_AWAITS_RETRY),
        [URS_SEND_SEGMENTS] = BIT(URS_SEND_IDLE),
        [URS_SEND_BACKLOG] = BIT(URS_SEND_IDLE),
        [URS_SEND_AWAITS_WRITABLE] = BIT(URS_SEND_IDLE),
        [URS_SEND_AWAITS_RETRY] = BIT(URS_SEND_IDLE),
    };
    return from < URS_COUNT(next) && (next[from] & BIT(to)) != 0;
}

bool urs_socket_may_become(enum urs_socket_state from, enum urs_socket_state to)
{
    static const uint8_t next[] = {
        [URS_SOCKET_USABLE] = BIT(URS_SOCKET_END_REPORTED) | BIT(URS_SOCKET_LOST),
        [URS_SOCKET_END_REPORTED] = BIT(URS_SOCKET_LOST),
        [URS_SOCKET_LOST] = 0,
    };
    return from < URS_COUNT(next) && (next[from] & BIT(to)) != 0;
}

struct urs_close urs_failure_close(enum urs_failure failure)
{
    static const struct urs_close closes[] = {
        [URS_FAILURE_NONE] = {URS_CLOSE_ABNORMAL, ""},
        [URS_FAILURE_BACKLOG] = {URS_CLOSE_POLICY_VIOLATION, "backlog full"},
        [URS_FAILURE_IDLE] = {URS_CLOSE_GOING_AWAY, "idle"},
        [URS_FAILURE_AGE] = {URS_CLOSE_GOING_AWAY, "session time is over"},
        [URS_FAILURE_MEMORY] = {URS_CLOSE_MESSAGE_TOO_BIG, "server out of memory"},
        [URS_FAILURE_ORDER] = {URS_CLOSE_INTERNAL_ERROR, "internal error"},
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
    URS_ASSERT(session->receive_state == URS_RECEIVE_IDLE && session->send_state == URS_SEND_IDLE);
    URS_ASSERT(session->late_events == 0 && session->lists == 0 && session->memberships == NULL);
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

int urs_session_hold(struct urs_session *session, struct urs_memory *memory, const uint8_t *data, size_t bytes)
{
    size_t expected = 2 * (urs_slice_bytes(&session->held) + bytes);
    return urs_slice_append(&session->held, memory, data, bytes, expected);
}

struct urs_holding urs_session_holding(const struct urs_session *session)
{
    struct urs_holding holding = {0};
    urs_holding_add(&holding, session->held.block, 1);
    urs_holding_add(&holding, session->engine.partial, 1);
    urs_holding_add(&holding, session->engine.control, 1);
    holding.freed_bytes += urs_deflate_memory_bytes(session->engine.deflate);
    holding.share_bytes += urs_deflate_memory_bytes(session->engine.deflate);
    urs_chain_measure(&session->backlog, &holding);
    return holding;
}

void urs_session_drop_memory(struct urs_session *session)
{
    urs_chain_consume(&session->backlog, session->backlog.bytes);
    session->pong_waits = false;
    urs_slice_drop(&session->held);
    urs_engine_clear(&session->engine);
}
