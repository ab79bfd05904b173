/* The calls from Python to one session: answers to its request, messages, closing, pausing, and questions about it. */
#define _GNU_SOURCE
#include "command.h"

#include <errno.h>
#include <string.h>

#include "admission.h"
#include "apply.h"
#include "core.h"
#include "deadline.h"
#include "fault.h"
#include "flush.h"
#include "frame.h"
#include "intake.h"
#include "lifecycle.h"
#include "peers.h"
#include "run.h"
#include "work.h"

/* From this size on a system call of its own, which displaces Python's data from the CPU caches, costs less than
 * copying the payload into the arena: at 16 KiB it costs more, at 32 KiB the same, at 64 KiB less (bench, server
 * uringws_send). The rest that the socket does not take is copied to the arena, which is in the CPU caches, unless it is
 * too large to stay there. */
enum { DIRECT_BYTES_MIN = 32768, ARENA_REST_BYTES_MAX = 65536 + URS_FRAME_ANSWER_BYTES_MAX };

/* A sender is told to wait when so many bytes wait, or backlog_high_bytes if that is more: else it could fill the arena
 * before the socket is tried. With less, coroutines would wait a turn for bursts that the socket takes at once. */
enum { TURN_BYTES_MIN = 262144 };

/* Finds the session with that id, for a call by the owner. Returns 0 or the error. */
static int find(struct urs_reactor *reactor, uint64_t id, struct urs_session **session)
{
    if (reactor == NULL)
        return URS_ERROR_STALE;
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    *session = urs_session_find(&reactor->sessions, id);
    return *session == NULL ? URS_ERROR_STALE : 0;
}

static int answer_request(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes, bool open,
                          uint16_t deflate_terms)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (session->state != URS_SESSION_AWAIT_DECISION && (open || session->state != URS_SESSION_AWAIT_HEAD))
        return URS_ERROR_STATE;
    if (urs_session_is_lost(session))
        return URS_ERROR_CLOSING;
    int error = 0;
    if (bytes > 0)
        error = urs_outbound_bytes(&reactor->outbox, &session->outbound, response, bytes);
    if (error != 0) {
        urs_life_lose(reactor, session, error);
        return error;
    }
    if (open) {
        urs_work_dirty(reactor, session);
        urs_engine_agree(&session->engine, deflate_terms);
        urs_life_open(reactor, session);
    } else {
        urs_life_finish(reactor, session);
    }
    return 0;
}

int urs_command_accept(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes,
                       uint16_t deflate_terms)
{
    return answer_request(reactor, id, response, bytes, true, deflate_terms);
}

int urs_command_reject(struct urs_reactor *reactor, uint64_t id, const uint8_t *response, size_t bytes)
{
    return answer_request(reactor, id, response, bytes, false, 0);
}

/* Returns the result for a frame that must not be sent now, after on_full was applied if the backlog is full. A part of
 * a message cannot be dropped, because its beginning has been sent. */
static int refuse_message(struct urs_reactor *reactor, struct urs_session *session, enum urs_gate gate, uint8_t opcode)
{
    const struct urs_rules *rules = urs_core_rules(reactor, session);
    if (gate == URS_GATE_ENDED)
        return URS_ERROR_CLOSING;
    if (gate == URS_GATE_ORDER)
        return session->unfinished ? URS_ERROR_INTERLEAVED : URS_ERROR_CONTINUATION;
    URS_ASSERT(gate == URS_GATE_FULL);
    reactor->stats.drops++;
    if (rules->on_full == URS_ON_FULL_ERROR
        || (rules->on_full == URS_ON_FULL_DROP && opcode == URS_OPCODE_CONTINUATION))
        return URS_ERROR_FULL;
    if (rules->on_full == URS_ON_FULL_CLOSE)
        urs_life_fail(reactor, session, URS_FAILURE_BACKLOG);
    return URS_DROPPED;
}

/* Copies the rest of a frame into a block of its own. If the socket still takes nothing, the next flush moves the block to
 * the backlog. */
static int queue_block(struct urs_reactor *reactor, struct urs_session *session, const struct iovec *rest, size_t bytes)
{
    struct urs_slice slice = {.block = urs_block_new(&reactor->memory, bytes)};
    if (slice.block == NULL)
        return urs_memory_error(&reactor->memory, bytes);
    slice.start = slice.end = URS_BLOCK_HEADROOM;
    for (size_t index = 0; index < 2; index++) {
        memcpy(slice.block->bytes + slice.end, rest[index].iov_base, rest[index].iov_len);
        slice.end += (uint32_t)rest[index].iov_len;
    }
    URS_ASSERT(urs_slice_bytes(&slice) == bytes);
    urs_block_seal(slice.block);
    return urs_outbound_slice(&reactor->outbox, &session->outbound, slice);
}

/* Queues the header and the payload of a frame, without the first `sent` bytes. Changes the vectors. */
static int queue_rest(struct urs_reactor *reactor, struct urs_session *session, struct iovec *vectors, size_t sent)
{
    size_t bytes = vectors[0].iov_len + vectors[1].iov_len - sent;
    int error = 0;
    for (size_t index = 0; index < 2; index++) {
        size_t skip = urs_min(sent, vectors[index].iov_len);
        vectors[index].iov_base = (uint8_t *)vectors[index].iov_base + skip;
        vectors[index].iov_len -= skip;
        sent -= skip;
    }
    URS_ASSERT(bytes > 0 && sent == 0);
    if (bytes > ARENA_REST_BYTES_MAX)
        return queue_block(reactor, session, vectors, bytes);
    for (size_t index = 0; index < 2 && error == 0; index++)
        if (vectors[index].iov_len > 0)
            error = urs_outbound_bytes(&reactor->outbox, &session->outbound, vectors[index].iov_base,
                                       vectors[index].iov_len);
    return error;
}

/* Sends a large payload at once from the caller's memory, if no other bytes of the session wait. Only the bytes that
 * the socket does not take are copied. Returns an urs_send_outcome or a negative result. */
static int send_direct(struct urs_reactor *reactor, struct urs_session *session, uint8_t opcode, bool fin,
                       const uint8_t *data, size_t bytes)
{
    uint8_t header[URS_FRAME_ANSWER_BYTES_MAX];
    size_t header_bytes = urs_frame_write(header, opcode, fin, bytes);
    struct iovec vectors[2] = {{.iov_base = header, .iov_len = header_bytes},
                               {.iov_base = (uint8_t *)(uintptr_t)data, .iov_len = bytes}};
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = 2};
    ssize_t result = urs_sys_sendmsg(session->fd, &message);
    size_t sent = result > 0 ? (size_t)result : 0;
    if (result < 0 && urs_io_send_fate(-errno) == URS_FATE_LOST) {
        urs_life_lose(reactor, session, -errno);
        return URS_ERROR_CLOSING;
    }
    reactor->stats.sends_direct++;
    reactor->stats.bytes_out += sent;
    session->sent_bytes += (uint32_t)sent;
    if (sent == header_bytes + bytes)
        return URS_SENT;
    int error = queue_rest(reactor, session, vectors, sent);
    if (error != 0) {
        session->reset = true;
        urs_life_lose(reactor, session, error);
        return URS_ERROR_CLOSING;  /* the event of the loss tells the error */
    }
    urs_work_dirty(reactor, session);
    return URS_QUEUED;
}

/* Returns the number of waiting bytes, as Python sees it. A caller that sees the high water mark may stop sending, so
 * an URS_EVENT_DRAIN must follow, even if the next flush sends all bytes. */
static size_t waiting(struct urs_reactor *reactor, struct urs_session *session)
{
    size_t bytes = session->backlog.bytes + session->outbound.bytes;
    if (bytes >= urs_core_rules(reactor, session)->backlog_high_bytes)
        session->drain_due = true;
    return bytes;
}

static enum urs_output output_of(uint8_t opcode)
{
    if (opcode >= URS_OPCODE_CLOSE)
        return URS_OUTPUT_CONTROL;
    return opcode == URS_OPCODE_CONTINUATION ? URS_OUTPUT_CONTINUATION : URS_OUTPUT_MESSAGE;
}

/* Compresses a message as its session agreed. Returns false if it must be sent uncompressed. */
static bool queue_compressed(struct urs_reactor *reactor, struct urs_session *session, uint8_t opcode,
                             const uint8_t *data, size_t bytes, int *error)
{
    const struct urs_engine_rules *rules = &urs_core_rules(reactor, session)->engine;
    bool data_frame = opcode == URS_OPCODE_TEXT || opcode == URS_OPCODE_BINARY;
    if (!data_frame || !urs_engine_compresses(&session->engine, rules, bytes)
        || !urs_outbound_compressed(&reactor->outbox, &session->outbound, &session->engine, rules, &reactor->memory,
                                    opcode, data, bytes, error))
        return false;
    reactor->stats.messages_deflated += *error == 0;
    return true;
}

/* Queues a frame, or sends it at once. Returns an urs_send_outcome or a negative result. */
static inline int queue_frame(struct urs_reactor *reactor, struct urs_session *session, uint8_t opcode, bool fin,
                              const uint8_t *data, size_t bytes)
{
    int error;
    bool compress = session->engine.deflate_terms != 0 && fin && (opcode & URS_SEND_UNCOMPRESSED) == 0;
    opcode &= (uint8_t)~URS_SEND_UNCOMPRESSED;
    if (URS_LIKELY(!compress) || !queue_compressed(reactor, session, opcode, data, bytes, &error)) {
        if (bytes >= DIRECT_BYTES_MIN && session->backlog.bytes + session->outbound.bytes == 0
            && session->send_state == URS_SEND_IDLE)
            return send_direct(reactor, session, opcode, fin, data, bytes);
        error = urs_outbound_frame(&reactor->outbox, &session->outbound, opcode, fin, data, bytes);
    }
    if (error != 0)
        return error;
    urs_work_dirty(reactor, session);
    return session->backlog.bytes > 0 || session->send_state != URS_SEND_IDLE ? URS_QUEUED : URS_SENT;
}

static inline int send_frame(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t flags, bool fin,
                             const uint8_t *data, size_t bytes)
{
    struct urs_session *session;
    uint8_t opcode = flags & (uint8_t)~URS_SEND_UNCOMPRESSED;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_apply_events(reactor, index, URS_NO_EVENT);
    urs_run_seal(reactor);
    enum urs_gate gate = urs_gate_check(session, urs_core_rules(reactor, session), output_of(opcode), bytes);
    if (gate != URS_GATE_OPEN)
        return refuse_message(reactor, session, gate, opcode);
    reactor->stats.messages_out += opcode < URS_OPCODE_CLOSE && fin;
    reactor->stats.pings_sent += opcode == URS_OPCODE_PING;

    int result = queue_frame(reactor, session, flags, fin, data, bytes);
    if (result < 0)
        return result;
    if (URS_UNLIKELY(!fin || opcode == URS_OPCODE_CONTINUATION))
        session->unfinished = !fin;
    size_t high = urs_core_rules(reactor, session)->backlog_high_bytes;
    if (URS_UNLIKELY(waiting(reactor, session) >= urs_max(high, TURN_BYTES_MIN)))
        result = URS_QUEUED;
    int error = urs_flush_arena(reactor);
    if (URS_UNLIKELY(error != 0))
        return error;
    return session->backlog.bytes > 0 ? URS_QUEUED : result;
}

int urs_command_send(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode, const uint8_t *data,
                     size_t bytes)
{
    return send_frame(reactor, id, index, opcode, true, data, bytes);
}

int urs_command_send_fragment(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode,
                              const uint8_t *data, size_t bytes)
{
    URS_ASSERT(opcode < URS_OPCODE_CLOSE);
    return send_frame(reactor, id, index, opcode, false, data, bytes);
}

int urs_command_send_prepared(struct urs_reactor *reactor, uint64_t id, uint32_t index, struct urs_block *prepared)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_apply_events(reactor, index, URS_NO_EVENT);
    urs_run_seal(reactor);
    enum urs_gate gate = urs_gate_check(session, urs_core_rules(reactor, session), URS_OUTPUT_MESSAGE,
                                        urs_prepared_payload_bytes(prepared));
    if (gate != URS_GATE_OPEN)
        return refuse_message(reactor, session, gate, URS_OPCODE_BINARY);
    int error = urs_outbound_prepared(&reactor->outbox, &session->outbound, prepared);
    if (error != 0)
        return error;
    URS_ASSERT(session->state == URS_SESSION_OPEN && session->outbound.first != 0);
    reactor->stats.messages_out++;
    urs_work_dirty(reactor, session);
    size_t high = urs_core_rules(reactor, session)->backlog_high_bytes;
    bool queued = waiting(reactor, session) >= urs_max(high, TURN_BYTES_MIN) || session->backlog.bytes > 0
        || session->send_state != URS_SEND_IDLE;
    return queued ? URS_QUEUED : URS_SENT;
}

const struct urs_item *urs_command_item(const struct urs_reactor *reactor, uint32_t index, uint8_t *opcode)
{
    /* This reads before the check of the thread. It does no harm: the arrays keep their size as long as the reactor
     * lives, and the call that sends the item refuses another thread. */
    if (reactor == NULL || index >= reactor->event_count || index < reactor->applied
        || reactor->targets[index] == URS_TARGET_OTHER)
        return NULL;
    const struct urs_item *item = &reactor->events[index].item;
    if ((*opcode & ~URS_SEND_UNCOMPRESSED) == 0)
        *opcode |= item->opcode;
    return (*opcode & ~URS_SEND_UNCOMPRESSED) == URS_OPCODE_CONTINUATION ? NULL : item;
}

int urs_command_send_event(struct urs_reactor *reactor, uint64_t id, uint32_t index, uint8_t opcode)
{
    const struct urs_item *item = urs_command_item(reactor, index, &opcode);
    if (item != NULL)
        return urs_command_send(reactor, id, index, opcode, item->payload, item->bytes);
    int refused = reactor == NULL ? 0 : urs_core_check(reactor);
    return refused != 0 ? refused : URS_ERROR_STATE;
}

int urs_command_close(struct urs_reactor *reactor, uint64_t id, uint32_t index, unsigned code, const uint8_t *reason,
                      size_t bytes)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_apply_events(reactor, index, index - 1);
    urs_run_seal(reactor);
    if (urs_gate_check(session, urs_core_rules(reactor, session), URS_OUTPUT_CLOSE, 2 + bytes) != URS_GATE_OPEN)
        return URS_ERROR_CLOSING;
    return urs_life_close(reactor, session, code, reason, bytes);
}

int urs_command_abort(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_life_lose(reactor, session, -ECONNABORTED);
    return 0;
}

int urs_command_pause(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (!urs_session_is_open(session))
        return URS_ERROR_CLOSING;
    urs_life_stop_input(reactor, session, URS_STOPPED_BY_PYTHON);
    return 0;
}

int urs_command_resume(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    if (!urs_session_is_open(session))
        return URS_ERROR_CLOSING;
    urs_life_resume_input(reactor, session, URS_STOPPED_BY_PYTHON);
    return 0;
}

int urs_command_failure(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    return refused != 0 ? refused : session->failure;
}

int64_t urs_command_buffered(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_run_seal(reactor);
    return (int64_t)waiting(reactor, session);
}

double urs_command_latency(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused == URS_ERROR_STALE)
        return -1.0;
    return refused != 0 ? (double)refused : (double)session->latency_seconds;
}

int urs_command_descriptor(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    return refused != 0 ? refused : session->fd;
}

int urs_command_peer(struct urs_reactor *reactor, uint64_t id, struct urs_peer *peer)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused == 0)
        *peer = session->peer;
    return refused;
}

int urs_command_set_proxied_peer(struct urs_reactor *reactor, uint64_t id, const struct urs_peer *peer)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused;
    urs_peers_leave(reactor, session->peer_hash);
    session->peer_hash = 0;
    if (peer != NULL)
        session->peer = *peer;
    return urs_peers_count(reactor, session) ? 0 : URS_ERROR_LIMIT;
}

int urs_command_state(struct urs_reactor *reactor, uint64_t id)
{
    struct urs_session *session;
    int refused = find(reactor, id, &session);
    if (refused != 0)
        return refused == URS_ERROR_STALE ? URS_SESSION_FREE : refused;
    /* The session is lost, and only its event is still to come. */
    bool looks_open = session->state == URS_SESSION_OPEN && urs_session_is_lost(session);
    return looks_open ? URS_SESSION_AWAIT_FLUSH : session->state;
}
