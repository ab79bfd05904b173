/* The insides of the reactor on epoll, brought into states that cannot be reached from outside within a test's time.
 * Runs the case that the command line names; aborts where it does not hold. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "budget.h"
#include "command.h"
#include "core.h"
#include "deadline.h"
#include "flush.h"
#include "intake.h"
#include "lifecycle.h"
#include "peers.h"
#include "work.h"
#include "frame.h"

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

enum { BUFFERS = 4, BUFFER_BYTES = 4096 };

/* The other backend is not linked. */
const struct urs_io_operations urs_io_uring = {.name = "io_uring"};

static uint8_t echo_flags[URS_EVENTS_MAX];
static uint32_t handled = URS_EVENTS_MAX;
static uint8_t pool[BUFFERS * BUFFER_BYTES];

static _Noreturn void fail(const char *condition, int line)
{
    fprintf(stderr, "line %d: does not hold: %s\n", line, condition);
    abort();
}

static const struct urs_rules rules = {
    .engine = {.message_bytes_max = 1 << 24}, .backlog_bytes_max = 1 << 24, .backlog_high_bytes = 1 << 20,
    .header_bytes_max = 1024, .session_turn_bytes_max = 1 << 16,
    .session_turn_messages_max = 64};

static struct urs_reactor *start_reactor(uint64_t memory_bytes_max)
{
    struct urs_io_report report;
    const struct urs_reactor_options options = {
        .fanout_turn_max = 2, .receive_buffers = BUFFERS, .receive_buffer_bytes = BUFFER_BYTES, .pool_memory = pool,
        .echo_flags = echo_flags,
        .handled = &handled, .memory_bytes_max = memory_bytes_max};
    struct urs_reactor *reactor = urs_reactor_open("epoll", &options, &rules, &report);
    CHECK(reactor != NULL && urs_reactor_start(reactor) == 0);
    return reactor;
}

/* A new open session; *peer is the other end of its socket. */
static struct urs_session *add_session(struct urs_reactor *reactor, int *peer)
{
    int ends[2];
    uint64_t id;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(urs_reactor_adopt(reactor, ends[0], 0, 0, NULL, 0, &id) == 0);
    *peer = ends[1];
    return urs_session_find(&reactor->sessions, id);
}

/* The program is linked with --wrap: every call of urs_session_holding comes here. */
struct urs_holding __wrap_urs_session_holding(const struct urs_session *session);
struct urs_holding __real_urs_session_holding(const struct urs_session *session);

static size_t sessions_looked_at;

struct urs_holding __wrap_urs_session_holding(const struct urs_session *session)
{
    sessions_looked_at++;
    return __real_urs_session_holding(session);
}

/* ---- cases --------------------------------------------------------------------------------------------------- */

/* A slot whose generations are used up gives no id a second time. */
static void ids_never_repeat(void)
{
    static struct urs_sessions sessions;
    uint64_t first = urs_session_id(urs_session_new(&sessions, -1));
    struct urs_session *session = urs_session_at(&sessions, 0);
    urs_session_free(&sessions, session);
    session->generation = UINT32_MAX - 3;  /* as after 2^31 - 2 sessions */
    uint64_t ids[6] = {first};
    for (size_t count = 1; count < URS_COUNT(ids); count++) {
        session = urs_session_new(&sessions, -1);
        ids[count] = urs_session_id(session);
        for (size_t before = 0; before < count; before++)
            CHECK(ids[before] != ids[count] && urs_session_find(&sessions, ids[before]) == NULL);
        CHECK(urs_session_find(&sessions, ids[count]) == session);
        urs_session_free(&sessions, session);
        CHECK(sessions.in_use == 0);
    }
    CHECK((uint32_t)ids[2] == 0 && (uint32_t)ids[3] != 0);
    urs_sessions_close(&sessions);
}

/* An event that found no room ends the reactor with an error instead of leaving its session for ever. */
static void a_lost_event_is_reported(void)
{
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_reactor_turn(reactor, 0, false) == 0);
    reactor->late_room = 0;
    urs_life_lose(reactor, session, -ECONNABORTED);
    CHECK(urs_reactor_turn(reactor, 0, false) == -EOVERFLOW);
    CHECK(urs_reactor_turn(reactor, 0, false) == -EOVERFLOW);
    urs_reactor_close(reactor);
    close(peer);
}

/* The number that stands for an address is another one in each reactor: nobody can look for one that two addresses share.
 * In one reactor it is the same each time, also for the other addresses of a /64. */
static void addresses_are_counted_by_a_secret(void)
{
    static const struct urs_peer origins[] = {
        {.family = 4, .address = {10, 0, 0, 1}},
        {.family = 6, .address = {0x20, 0x01, 0x0d, 0xb8, [7] = 1, [15] = 1}},
        {.family = 6, .address = {0x20, 0x01, 0x0d, 0xb8, [7] = 1, [15] = 2}},
        {.family = 6, .address = {0x20, 0x01, 0x0d, 0xb8, [7] = 2, [15] = 1}},
    };
    uint32_t numbers[2][URS_COUNT(origins)];
    for (size_t number = 0; number < URS_COUNT(numbers); number++) {
        int peer;
        struct urs_reactor *reactor = start_reactor(0);
        reactor->options.sessions_per_ip_max = 10;
        struct urs_session *session = add_session(reactor, &peer);
        for (size_t index = 0; index < URS_COUNT(origins); index++) {
            session->peer = origins[index];
            CHECK(urs_peers_count(reactor, session));
            numbers[number][index] = session->peer_hash;
            urs_peers_leave(reactor, session->peer_hash);
        }
        session->peer_hash = 0;
        urs_reactor_close(reactor);
        close(peer);
        CHECK(numbers[number][1] == numbers[number][2]);
        CHECK(numbers[number][0] != numbers[number][1] && numbers[number][1] != numbers[number][3]);
    }
    for (size_t index = 0; index < URS_COUNT(origins); index++)
        CHECK(numbers[0][index] != numbers[1][index]);
}

enum { HOLDERS = 200, HELD_BYTES = 1000, BUDGET_BYTES = HOLDERS * HELD_BYTES * 2 };

/* A reactor whose sessions have each begun a message: the first HOLDERS / 2 of 1 KiB, the others of 2 KiB and more. */
static struct urs_reactor *start_with_holders(int *peers)
{
    struct urs_reactor *reactor = start_reactor(BUDGET_BYTES);
    for (int number = 0; number < HOLDERS; number++) {
        struct urs_session *session = add_session(reactor, &peers[number]);
        size_t bytes = number < HOLDERS / 2 ? HELD_BYTES : 2 * HELD_BYTES + (size_t)number;
        session->engine.partial = urs_block_new(&reactor->memory, bytes);
        CHECK(session->engine.partial != NULL);
    }
    return reactor;
}

static void end_with_holders(struct urs_reactor *reactor, const int *peers)
{
    urs_reactor_close(reactor);
    for (int number = 0; number < HOLDERS; number++)
        close(peers[number]);
}

/* Near the budget one look at each session finds all that must give way: those that hold the most, and no more of them
 * than it takes. */
static void one_look_finds_who_gives_way(void)
{
    int peers[HOLDERS];
    struct urs_reactor *reactor = start_with_holders(peers);
    reactor->memory.bytes_max = reactor->memory.bytes_used + reactor->memory.bytes_used / 10;
    size_t max = reactor->memory.bytes_max;
    sessions_looked_at = 0;
    urs_budget_enforce(reactor);
    CHECK(sessions_looked_at == HOLDERS);
    uint64_t evictions = reactor->stats.evictions;
    CHECK(evictions > 10 && reactor->memory.bytes_used <= max - max / 4);
    CHECK(reactor->memory.bytes_used + 3 * HELD_BYTES > max - max / 4);
    for (uint32_t slot = 0; slot < HOLDERS; slot++)
        CHECK((urs_core_session(reactor, slot)->state == URS_SESSION_OPEN) == (slot < HOLDERS - evictions));
    end_with_holders(reactor, peers);
}

/* Memory that is charged to no session ends none of them, and costs no look at all of them in each turn. */
static void nobody_gives_way_for_memory_of_nobody(void)
{
    int peers[HOLDERS];
    struct urs_reactor *reactor = start_with_holders(peers);
    reactor->memory.bytes_max = 2 * reactor->memory.bytes_used;
    struct urs_block *lent[64];
    size_t count = 0;
    while (reactor->memory.bytes_used <= reactor->memory.bytes_max / 16 * 15) {
        lent[count] = urs_block_new(&reactor->memory, 10000);
        CHECK(lent[count] != NULL && ++count < URS_COUNT(lent));
    }
    sessions_looked_at = 0;
    for (int turn = 0; turn < 10; turn++)
        urs_budget_enforce(reactor);
    CHECK(reactor->stats.evictions == 0 && sessions_looked_at == HOLDERS);
    reactor->now_ms += URS_DELAY_MS;
    urs_budget_enforce(reactor);
    CHECK(reactor->stats.evictions == 0 && sessions_looked_at == 2 * HOLDERS);
    while (count > 0)
        urs_block_drop(lent[--count]);
    end_with_holders(reactor, peers);
}

/* What Python shares is not charged, and no session answers for it. */
static void a_share_of_python_is_not_counted(void)
{
    int peer;
    struct urs_reactor *reactor = start_reactor(BUDGET_BYTES);
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_session_hold(session, &reactor->memory, pool, 1000) == 0);
    CHECK(urs_session_holding(session).freed_bytes == reactor->memory.bytes_used);
    struct urs_block *shared = session->held.block;
    urs_block_share(shared);
    CHECK(urs_session_holding(session).share_bytes == 0 && reactor->memory.bytes_used == 0);
    urs_reactor_close(reactor);
    urs_block_drop(shared);
    close(peer);
}

/* A frame of a million bytes for many sessions, as one block; each has a reference to it. */
static struct urs_slice send_to_all(struct urs_reactor *reactor, struct urs_session **sessions, size_t count)
{
    enum { BYTES = 1000000 };
    struct urs_block *block = urs_block_new(&reactor->memory, BYTES + URS_FRAME_ANSWER_BYTES_MAX);
    CHECK(block != NULL);
    size_t header = urs_frame_write(urs_block_data(block), URS_OPCODE_BINARY, true, BYTES);
    for (size_t index = 0; index < BYTES; index++)
        urs_block_data(block)[header + index] = (uint8_t)(index * index >> 8);
    struct urs_slice slice = {block, URS_BLOCK_HEADROOM, URS_BLOCK_HEADROOM + (uint32_t)(header + BYTES)};
    urs_block_seal(block);
    for (size_t index = 0; index < count; index++) {
        urs_block_hold(block);
        CHECK(urs_outbound_slice(&reactor->outbox, &sessions[index]->outbound, slice) == 0);
        urs_work_dirty(reactor, sessions[index]);
    }
    urs_block_drop(block);
    CHECK(urs_flush_sessions(reactor, URS_FLUSH_ALL) == 0);
    return slice;
}

/* The memory of a message that many sessions are slow to read grows with the message. Each reads it at its own pace, to
 * the last byte. */
static void a_message_to_many_is_kept_once(void)
{
    enum { READERS = 20 };
    static uint8_t copy[1 << 21];
    static uint8_t expected[1 << 21];
    int peers[READERS];
    struct urs_session *sessions[READERS];
    struct urs_reactor *reactor = start_reactor(0);
    for (size_t index = 0; index < READERS; index++)
        sessions[index] = add_session(reactor, &peers[index]);
    struct urs_slice slice = send_to_all(reactor, sessions, READERS);
    size_t bytes = urs_slice_bytes(&slice);
    memcpy(expected, urs_slice_data(&slice), bytes);
    CHECK(reactor->memory.bytes_used < 3 * bytes);
    for (size_t index = 0; index < READERS; index++) {
        CHECK(sessions[index]->backlog.bytes > bytes / 4);
        size_t have = 0;
        while (have < bytes) {
            ssize_t got = recv(peers[index], copy + have, 10000 + 1000 * index, MSG_DONTWAIT);
            have += got > 0 ? (size_t)got : 0;
            if (got < 0)
                urs_reactor_turn(reactor, 1, false);
        }
        CHECK(have == bytes && memcmp(copy, expected, bytes) == 0);
    }
    for (int turn = 0; turn < 3; turn++)
        urs_reactor_turn(reactor, 0, false);
    CHECK(reactor->memory.bytes_used == 0 && reactor->stats.bytes_out == READERS * bytes);
    urs_reactor_close(reactor);
    for (size_t index = 0; index < READERS; index++)
        close(peers[index]);
}

/* A backlog that the socket takes whole leaves in one flush, however many slices it has: a send names 64 at most. */
static void a_backlog_of_many_slices_leaves_in_one_flush(void)
{
    enum { SLICES = 3 * URS_IO_VECTORS_MAX + 1, BYTES = 300 };
    static uint8_t received[SLICES * BYTES];
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    struct urs_block *block = urs_block_new(&reactor->memory, BYTES);
    CHECK(block != NULL);
    memset(urs_block_data(block), 'x', BYTES);
    urs_block_seal(block);
    for (size_t index = 0; index < SLICES; index++) {
        urs_block_hold(block);
        struct urs_slice slice = {block, URS_BLOCK_HEADROOM, URS_BLOCK_HEADROOM + BYTES};
        CHECK(urs_chain_push(&session->backlog, &reactor->memory, slice) == 0);
    }
    urs_block_drop(block);
    urs_work_dirty(reactor, session);
    CHECK(urs_flush_sessions(reactor, URS_FLUSH_ALL) == 0);
    CHECK(session->backlog.bytes == 0 && reactor->stats.sends_short == 0);
    CHECK(recv(peer, received, sizeof received, MSG_DONTWAIT) == (ssize_t)sizeof received);
    urs_reactor_close(reactor);
    close(peer);
}

/* Sessions that share a message are not ended near the budget while the end of others frees enough, even if each has a
 * larger share. */
static void a_shared_message_ends_none_of_its_readers(void)
{
    enum { READERS = 3 };
    int peers[READERS], greedy_peer;
    struct urs_session *sessions[READERS];
    struct urs_reactor *reactor = start_reactor(0);
    for (size_t index = 0; index < READERS; index++)
        sessions[index] = add_session(reactor, &peers[index]);
    send_to_all(reactor, sessions, READERS);
    struct urs_session *greedy = add_session(reactor, &greedy_peer);
    greedy->engine.partial = urs_block_new(&reactor->memory, 200000);  /* less than a third of the message takes */
    CHECK(greedy->engine.partial != NULL);
    reactor->memory.bytes_max = reactor->memory.bytes_used + reactor->memory.bytes_used / 12;
    urs_budget_enforce(reactor);
    CHECK(reactor->stats.evictions == 1 && greedy->state != URS_SESSION_OPEN);
    /* Now only the end of all readers of the message frees memory. */
    reactor->memory.bytes_max = reactor->memory.bytes_used + reactor->memory.bytes_used / 20;
    reactor->now_ms += URS_DELAY_MS;
    for (int turn = 0; turn < 3; turn++)
        urs_budget_enforce(reactor);
    CHECK(reactor->memory.bytes_used == 0 && reactor->stats.evictions == 1 + READERS);
    urs_reactor_close(reactor);
    close(greedy_peer);
    for (size_t index = 0; index < READERS; index++)
        close(peers[index]);
}

/* Each kind of frame has its own limit, which it may reach to the byte and not exceed. The limits are those of the
 * documentation: a message may fill the backlog with its payload; pings and pongs may fill 4096 bytes more, with their
 * headers; a close frame always has room. */
static void each_kind_of_output_has_its_limit(void)
{
    enum { MAX = 100000, RESERVE = 4096 };
    static const struct { enum urs_output kind; size_t bytes, frame_bytes, limit; } kinds[] = {
        {URS_OUTPUT_MESSAGE, 0, 0, MAX},
        {URS_OUTPUT_MESSAGE, 50000, 50000, MAX},
        {URS_OUTPUT_MESSAGE, MAX, MAX, MAX},
        {URS_OUTPUT_CONTROL, 0, 2, MAX + RESERVE},
        {URS_OUTPUT_CONTROL, 125, 127, MAX + RESERVE},
        {URS_OUTPUT_PONG, 125, 127, MAX + RESERVE},
        {URS_OUTPUT_CLOSE, 125, 0, SIZE_MAX / 2},
    };
    const struct urs_rules limits = {.backlog_bytes_max = MAX};
    for (size_t index = 0; index < URS_COUNT(kinds); index++) {
        size_t waiting = kinds[index].limit - kinds[index].frame_bytes;
        struct urs_session session = {.state = URS_SESSION_OPEN};
        /* It makes no difference whether the bytes wait in the backlog or are still to be sent in this turn. */
        size_t *places[] = {&session.backlog.bytes, &session.outbound.bytes};
        for (size_t place = 0; place < URS_COUNT(places); place++) {
            session.backlog.bytes = session.outbound.bytes = 0;
            *places[place] = waiting;
            CHECK(urs_gate_check(&session, &limits, kinds[index].kind, kinds[index].bytes) == URS_GATE_OPEN);
            *places[place] = waiting + 1;
            CHECK(urs_gate_check(&session, &limits, kinds[index].kind, kinds[index].bytes)
                  == (kinds[index].kind == URS_OUTPUT_CLOSE ? URS_GATE_OPEN : URS_GATE_FULL));
        }
        session.backlog.bytes = 1;
        session.outbound.bytes = 0;
        session.pongs = 16;
        CHECK(urs_gate_check(&session, &limits, kinds[index].kind, 100)
              == (kinds[index].kind == URS_OUTPUT_PONG ? URS_GATE_LATEST : URS_GATE_OPEN));
        session.socket_state = URS_SOCKET_LOST;
        CHECK(urs_gate_check(&session, &limits, kinds[index].kind, 0) == URS_GATE_ENDED);
        session.socket_state = URS_SOCKET_USABLE;
        for (int state = URS_SESSION_FREE; state <= URS_SESSION_AWAIT_REQUESTS; state++) {
            session.state = (uint8_t)state;
            CHECK((urs_gate_check(&session, &limits, kinds[index].kind, 0) == URS_GATE_ENDED)
                  == (state != URS_SESSION_OPEN));
        }
    }
}

/* The pings of the reactor itself keep to the limit like those of the application, to the byte. */
static void its_own_pings_keep_to_the_reserve(void)
{
    enum { MAX = 1 << 20, RESERVE = 4096, PING_BYTES = 2 + 8 };
    static const uint8_t payload[MAX];
    for (size_t room = PING_BYTES - 1; room <= PING_BYTES; room++) {
        int peer;
        struct urs_reactor *reactor = start_reactor(0);
        reactor->rules.sets[0].backlog_bytes_max = MAX;
        reactor->rules.sets[0].on_full = URS_ON_FULL_ERROR;
        struct urs_session *session = add_session(reactor, &peer);
        uint64_t id = urs_session_id(session);
        CHECK(urs_command_send(reactor, id, 0, URS_OPCODE_BINARY, payload, MAX) == URS_QUEUED);
        CHECK(urs_flush_sessions(reactor, URS_FLUSH_ALL) == 0);
        size_t rest = MAX - session->backlog.bytes;
        CHECK(urs_command_send(reactor, id, 0, URS_OPCODE_BINARY, payload, rest + 1) == URS_ERROR_FULL);
        CHECK(urs_command_send(reactor, id, 0, URS_OPCODE_BINARY, payload, rest) == URS_QUEUED);
        size_t left = MAX + RESERVE - session->backlog.bytes - session->outbound.bytes;
        for (; left > 300; left -= 127)
            CHECK(urs_command_send(reactor, id, 0, URS_OPCODE_PONG, payload, 125) == URS_QUEUED);
        for (size_t more = left - room; more > 0; more = left - room) {
            size_t bytes = more > 127 ? 100 : more - 2;
            CHECK(urs_command_send(reactor, id, 0, URS_OPCODE_PONG, payload, bytes) == URS_QUEUED);
            left -= 2 + bytes;
        }
        uint64_t before = reactor->stats.pings_sent;
        reactor->rules.sets[0].ping_interval_ms = 1;
        urs_deadline_resumed(reactor, session);
        for (int turn = 0; turn < 100 && reactor->stats.pings_sent == before; turn++)
            urs_reactor_turn(reactor, 5, false);
        CHECK(reactor->stats.pings_sent - before == (room == PING_BYTES));
        CHECK(session->backlog.bytes <= MAX + RESERVE);
        CHECK(urs_command_close(reactor, id, 0, 1000, payload, 123) == 0);
        urs_reactor_close(reactor);
        close(peer);
    }
}

/* A small block that the kernel still sends from is not freed with the reactor: whoever was given its memory would write
 * into bytes that are still to go out. AddressSanitizer reports a read of it if it was. */
static void what_is_lent_outlives_the_reactor(void)
{
    static struct urs_block *lent;
    struct urs_reactor *reactor = start_reactor(0);
    reactor->loans = calloc(BUFFERS / 4, sizeof *reactor->loans);
    CHECK(reactor->loans != NULL);
    lent = reactor->loans[0].block = urs_block_new(&reactor->memory, 20000);
    CHECK(lent != NULL);
    memset(urs_block_data(lent), 7, 20000);
    urs_reactor_close(reactor);
    for (size_t index = 0; index < 20000; index++)
        CHECK(urs_block_data(lent)[index] == 7);
}

/* Bytes that the peer takes are progress, however many they were since the last look. Positions in the stream have 32
 * bits. */
static void gigabytes_are_progress(void)
{
    static const uint8_t payload[1 << 23];
    static const uint32_t steps[] = {0xa0000000, 0xf0000000, 0x7fffffff, 1 << 20};
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    reactor->rules.sets[0].idle_ms = 40;
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_command_send(reactor, urs_session_id(session), 0, URS_OPCODE_BINARY, payload, sizeof payload) >= 0);
    for (size_t count = 0; count < URS_COUNT(steps); count++) {
        uint32_t since_ms = session->last_input_ms;
        session->sent_bytes += steps[count];
        while (session->last_input_ms == since_ms && session->state == URS_SESSION_OPEN)
            urs_reactor_turn(reactor, 10, false);
        CHECK(session->state == URS_SESSION_OPEN && session->backlog.bytes > 0);
    }
    for (int turn = 0; turn < 100 && session->state == URS_SESSION_OPEN; turn++)
        urs_reactor_turn(reactor, 10, false);
    CHECK(session->state == URS_SESSION_AWAIT_CLOSE);  /* the peer takes nothing more */
    urs_reactor_close(reactor);
    close(peer);
}

/* A session that a long search for resets has passed already is found by the next search. */
static void a_reset_behind_the_search_is_found(void)
{
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_io_operations operations = *reactor->io->operations;
    operations.misses_resets = true;
    reactor->io->operations = &operations;
    struct urs_session *session = add_session(reactor, &peer);
    close(peer);
    reactor->resets_slot = 1;
    reactor->resets_due_ms = reactor->now_ms;
    urs_intake_doubt(reactor, session);
    for (int search = 0; search < 2; search++) {
        CHECK(session->receive_state == URS_RECEIVE_ARMED && reactor->resets_due_ms != 0);
        reactor->now_ms = reactor->resets_due_ms;
        urs_intake_find_resets(reactor);
    }
    CHECK(session->receive_state == URS_RECEIVE_CANCELLING && reactor->resets_due_ms == 0);
    urs_reactor_close(reactor);
}

/* The budget refuses a block that would fit without the room that its class adds. The error names the budget. */
static void the_budget_is_named_for_what_it_refuses(void)
{
    struct urs_memory memory = {.bytes_max = 100000};
    struct urs_block *block = urs_block_new(&memory, 40000);
    CHECK(block != NULL && memory.bytes_max - memory.bytes_used > 34000);
    CHECK(urs_block_new(&memory, 34000) == NULL && urs_memory_error(&memory, 34000) == URS_ERROR_MEMORY_BUDGET);
    CHECK(urs_memory_error(&memory, 30000) == -ENOMEM);
    urs_block_drop(block);
    urs_memory_clear(&memory);
}

/* A turn that is taken in halves: events wait until they are handled, and replies leave with the flush, not with the
 * next wait. */
static void a_turn_has_two_halves(void)
{
    static const uint8_t request[] = {0x82, 0x83, 0, 0, 0, 0, 'a', 'b', 'c'};
    static const uint8_t reply[] = {0x82, 0x03, 'a', 'b', 'c'};
    uint8_t received[64];
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_reactor_flush(reactor) == 0);
    CHECK(write(peer, request, sizeof request) == sizeof request);
    handled = 0;
    CHECK(urs_reactor_collect(reactor, 5000, false) == 1);
    CHECK(urs_reactor_pending(reactor) == 1);
    CHECK(urs_reactor_flush(reactor) == 1 && recv(peer, received, sizeof received, MSG_DONTWAIT) < 0);
    CHECK(urs_reactor_collect(reactor, 0, false) == URS_ERROR_STATE);
    echo_flags[0] = 1;
    handled = 1;
    CHECK(urs_reactor_pending(reactor) == 0);
    CHECK(urs_reactor_flush(reactor) == 0 && handled == 0);
    CHECK(recv(peer, received, sizeof received, MSG_DONTWAIT) == sizeof reply);
    CHECK(memcmp(received, reply, sizeof reply) == 0);
    CHECK(urs_reactor_due_ms(reactor) > 0);
    CHECK(urs_command_send(reactor, urs_session_id(session), 0, URS_OPCODE_BINARY, request, 3) == URS_SENT);
    CHECK(urs_reactor_due_ms(reactor) == 0);
    CHECK(urs_reactor_collect(reactor, 0, false) == 0);
    CHECK(urs_reactor_flush(reactor) == 0 && recv(peer, received, sizeof received, MSG_DONTWAIT) == sizeof reply);
    echo_flags[0] = 0;
    handled = URS_EVENTS_MAX;
    urs_reactor_close(reactor);
    close(peer);
}

static int refuse_receive(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once)
{
    (void)io, (void)slot, (void)generation, (void)fd, (void)once;
    return -ENOMEM;
}

/* A receive that waits for the system to have memory again does not hold up what the session sends. */
static void a_shortage_of_receives_stops_no_send(void)
{
    uint8_t received[64];
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_io_operations operations = *reactor->io->operations;
    operations.receive = refuse_receive;
    reactor->io->operations = &operations;
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(session->receive_state == URS_RECEIVE_AWAITS_RETRY && reactor->retries.count == 1);
    CHECK(urs_command_send(reactor, urs_session_id(session), 0, URS_OPCODE_BINARY, pool, 3) == URS_SENT);
    CHECK(urs_reactor_flush(reactor) == 0 && session->backlog.bytes == 0);
    CHECK(recv(peer, received, sizeof received, MSG_DONTWAIT) == 5);
    CHECK(session->receive_state == URS_RECEIVE_AWAITS_RETRY && session->send_state == URS_SEND_IDLE);
    urs_reactor_close(reactor);
    close(peer);
}

/* epoll reports a socket as writable again if the system refused the call that ends it. A session that waits for
 * memory by then goes on waiting. */
static void a_repeated_report_of_writable_is_ignored(void)
{
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_reactor_flush(reactor) == 0);
    for (int round = 0; round < 2; round++) {
        reactor->completions[0] = (struct urs_completion){
            .kind = URS_IO_WRITABLE, .slot = session->slot, .generation = session->generation & 0xffffff,
            .buffer = URS_IO_NO_BUFFER};
        reactor->completion_count = 1;
        CHECK(urs_reactor_collect(reactor, 0, false) == 0 && urs_reactor_flush(reactor) == 0);
        CHECK(session->send_state == (round == 0 ? URS_SEND_IDLE : URS_SEND_AWAITS_RETRY));
        if (round == 0)
            urs_work_retry_send(reactor, session);
        reactor->retry_at_ms = UINT64_MAX;
    }
    CHECK(reactor->retries.count == 1);
    urs_reactor_close(reactor);
    close(peer);
}

/* A receive that is cancelled a second time, as at the deadline of a session that ends, has one last completion. */
static void a_receive_ends_once(void)
{
    struct urs_completion completions[4];
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    struct urs_io *io = reactor->io;
    CHECK(session->receive_state == URS_RECEIVE_ARMED);
    for (int time = 0; time < 2; time++)
        CHECK(io->operations->receive_stop(io, session->slot, session->generation, session->fd) == 0);
    CHECK(io->operations->collect(io, completions, URS_COUNT(completions)) == 1);
    CHECK(completions[0].kind == URS_IO_RECEIVE && !completions[0].more && completions[0].result == -ECANCELED);
    urs_reactor_close(reactor);
    close(peer);
}

/* A drain sends the close frames of many sessions together, and its memory does not grow with their number. */
static void a_drain_keeps_its_memory_small(void)
{
    enum { SESSIONS = 3 };
    int peers[SESSIONS];
    uint8_t received[8];
    struct urs_reactor *reactor = start_reactor(0);
    for (int number = 0; number < SESSIONS; number++)
        add_session(reactor, &peers[number]);
    reactor->outbox.arena_bytes = URS_ARENA_FLUSH_BYTES;  /* the next frame is one too many */
    urs_reactor_drain(reactor, 0, 1001);
    for (int number = 0; number < SESSIONS; number++)
        CHECK((recv(peers[number], received, sizeof received, MSG_DONTWAIT) == 4) == (number == 0));
    CHECK(reactor->outbox.arena_bytes == 2 * 4);
    CHECK(urs_flush_sessions(reactor, URS_FLUSH_ALL) == 0);
    urs_reactor_close(reactor);
    for (int number = 0; number < SESSIONS; number++)
        close(peers[number]);
}

static int refuse_stop(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    (void)io, (void)slot, (void)generation, (void)fd;
    return -EBUSY;
}

/* A reset that a receive missed is looked for again if the backend had no room for the cancel. */
static void a_refused_cancel_is_repeated(void)
{
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_io_operations operations = *reactor->io->operations;
    operations.misses_resets = true;
    operations.receive_stop = refuse_stop;
    reactor->io->operations = &operations;
    struct urs_session *session = add_session(reactor, &peer);
    close(peer);
    urs_intake_doubt(reactor, session);
    for (int search = 0; search < 2; search++) {
        CHECK(session->receive_state == URS_RECEIVE_ARMED && reactor->resets_due_ms != 0);
        reactor->now_ms = reactor->resets_due_ms;
        urs_intake_find_resets(reactor);
        operations.receive_stop = urs_io_epoll.receive_stop;
    }
    CHECK(session->receive_state == URS_RECEIVE_CANCELLING && reactor->resets_due_ms == 0);
    urs_reactor_close(reactor);
}

/* Two gigabytes and more in front of a ping: while the peer has not taken them, its pong is not due. */
static void a_question_may_wait_behind_gigabytes(void)
{
    static const uint8_t payload[1 << 23];
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    reactor->rules.sets[0].ping_timeout_ms = 400;
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_command_send(reactor, urs_session_id(session), 0, URS_OPCODE_BINARY, payload, sizeof payload) >= 0);
    CHECK(urs_flush_sessions(reactor, URS_FLUSH_ALL) == 0);
    session->ping_sent_us = reactor->now_us;
    session->has_deadline = true;
    session->deadline_ms = (uint32_t)reactor->now_ms + 400;
    urs_deadline_set_question(session, true);
    session->question_bytes = session->sent_bytes + 0x80001000;
    session->acked_bytes = session->sent_bytes + 1;
    urs_deadline_schedule(reactor, session);
    for (int turn = 0; turn < 100 && session->acked_bytes == session->sent_bytes + 1; turn++)
        urs_reactor_turn(reactor, 10, false);
    CHECK(session->acked_bytes != session->sent_bytes + 1 && session->question_queued);
    urs_reactor_close(reactor);
    close(peer);
}

/* A question about unread input changes nothing: the session is still given the time to have it read. */
static void a_look_for_unread_input_changes_nothing(void)
{
    static const uint8_t close_frame[] = {0x88, 0x80, 0, 0, 0, 0};
    int peer;
    struct urs_reactor *reactor = start_reactor(0);
    struct urs_session *session = add_session(reactor, &peer);
    CHECK(urs_command_close(reactor, urs_session_id(session), 0, 1000, NULL, 0) == 0);
    CHECK(urs_reactor_flush(reactor) == 0);
    CHECK(write(peer, close_frame, sizeof close_frame) == sizeof close_frame);
    close(peer);  /* our close frame is unread there, so this is a reset */
    for (int time = 0; time < 2; time++)
        CHECK(urs_reactor_unread(reactor) == 1 && !session->reprieved);
    urs_reactor_close(reactor);
}

int main(int count, char **arguments)
{
    static const struct { const char *name; void (*run)(void); } cases[] = {
        {"ids_never_repeat", ids_never_repeat},
        {"a_lost_event_is_reported", a_lost_event_is_reported},
        {"addresses_are_counted_by_a_secret", addresses_are_counted_by_a_secret},
        {"one_look_finds_who_gives_way", one_look_finds_who_gives_way},
        {"nobody_gives_way_for_memory_of_nobody", nobody_gives_way_for_memory_of_nobody},
        {"a_share_of_python_is_not_counted", a_share_of_python_is_not_counted},
        {"a_message_to_many_is_kept_once", a_message_to_many_is_kept_once},
        {"a_backlog_of_many_slices_leaves_in_one_flush", a_backlog_of_many_slices_leaves_in_one_flush},
        {"a_shared_message_ends_none_of_its_readers", a_shared_message_ends_none_of_its_readers},
        {"each_kind_of_output_has_its_limit", each_kind_of_output_has_its_limit},
        {"its_own_pings_keep_to_the_reserve", its_own_pings_keep_to_the_reserve},
        {"what_is_lent_outlives_the_reactor", what_is_lent_outlives_the_reactor},
        {"gigabytes_are_progress", gigabytes_are_progress},
        {"a_reset_behind_the_search_is_found", a_reset_behind_the_search_is_found},
        {"the_budget_is_named_for_what_it_refuses", the_budget_is_named_for_what_it_refuses},
        {"a_turn_has_two_halves", a_turn_has_two_halves},
        {"a_shortage_of_receives_stops_no_send", a_shortage_of_receives_stops_no_send},
        {"a_repeated_report_of_writable_is_ignored", a_repeated_report_of_writable_is_ignored},
        {"a_receive_ends_once", a_receive_ends_once},
        {"a_drain_keeps_its_memory_small", a_drain_keeps_its_memory_small},
        {"a_refused_cancel_is_repeated", a_refused_cancel_is_repeated},
        {"a_question_may_wait_behind_gigabytes", a_question_may_wait_behind_gigabytes},
        {"a_look_for_unread_input_changes_nothing", a_look_for_unread_input_changes_nothing},
    };
    for (size_t index = 0; count == 2 && index < URS_COUNT(cases); index++) {
        if (strcmp(arguments[1], cases[index].name) == 0) {
            cases[index].run();
            return 0;
        }
    }
    return 2;
}
