/* Fuzzes the whole reactor on epoll: the input drives peers on Unix sockets, a handler, a clock, and a system that
 * fails.
 *
 * The input consists of eight bytes of options and then operations (enum operation); one byte names an operation and
 * its peer. These must hold: a session's events are those that a reference engine finds in the bytes of its peer, in
 * order, for any chunks; a peer receives whole frames, exactly the expected ones, in order, and nothing after a close
 * frame; an opened session ends exactly once; an event names a live session; and in the end nothing is left over. */
#define _GNU_SOURCE
#include "peer.h"

#include <fcntl.h>
#include <time.h>

#include "command.h"
#include "core.h"
#include "fault.h"
#include "intake.h"

enum {
    PEERS = 16,                          /* as many as fit into one byte beside an operation */
    SLOTS = 16,
    OPERATIONS_MAX = 300,
    SETTLE_TURNS_MAX = 4000,
    QUIET_TURNS = 3,
    READ_BYTES_MAX = 1 << 16,
    QUIET = 1,                           /* a seed with which the handler does nothing but watch */
    PAYLOAD_BYTES_MAX = 1 << 17,
    PREFIX_BYTES_MAX = 4096,
    ADOPTED = 1                          /* the index of the rules of adopted sessions */
};

enum operation {
    CONNECT, ADOPT, REQUEST, FRAME, RAW, READ, HALF_CLOSE, HANG_UP, TURN, TIME_PASSES, COMMAND, FAULT, NO_MEMORY, END,
    SETTLE, ANSWER_PING
};

/* ---- the system interface of the shim ---- */

int fuzz_clock_gettime(clockid_t clock, struct timespec *now);

static uint64_t clock_ms;

int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){.tv_sec = (time_t)(clock_ms / 1000), .tv_nsec = (long)(clock_ms % 1000) * 1000000};
    return 0;
}

/* The io_uring backend needs a kernel, so it is not linked. */
const struct urs_io_operations urs_io_uring = {.name = "io_uring"};

/* ---- the world ---- */

struct world {
    struct urs_reactor *reactor;
    struct urs_reactor_options options;
    struct urs_rules rules[2];           /* of accepted sessions, and of adopted ones */
    struct peer peers[PEERS];
    uint64_t opened[SLOTS];              /* indexed by slot: the id of the session that the handler knows; 0: none */
    struct peer *of_slot[SLOTS];
    uint64_t waiting[SLOTS];             /* indexed by slot: the id of a session whose request is answered later */
    size_t head_bytes[SLOTS];            /* of that request */
    uint32_t index;                      /* the index of the present event, for calls of the handler */
    int listener;
    struct sockaddr_un address;
    socklen_t address_bytes;
    int send_buffer_bytes;               /* of the reactor's sockets: small, so that backlogs arise */
    bool is_unix;                        /* the reactor is told that its peers are on Unix sockets */
    bool echo;
    bool faulty;                         /* an allocation has failed, or will */
    bool broken;                         /* the backend reported that it is unusable */
    bool abandon;                        /* at the end the reactor is closed while it still has sessions */
    bool cut;                            /* at the end the sessions are cut */
    int pipe[2];                         /* the descriptor that the reactor watches is the first */
    bool filled;                         /* a byte is in the pipe */
    uint64_t watch;                      /* 0: it is not watched */
    uint32_t reports;                    /* how often the watch was reported */
};

static uint8_t payload[PAYLOAD_BYTES_MAX];

static bool drops(const struct world *world) { return world->reactor->stats.drops > 0 || world->faulty; }

static struct peer *peer_of_session(struct world *world, const struct urs_session *session)
{
    struct sockaddr_un name = {0};
    socklen_t bytes = sizeof name;
    CHECK(getpeername(session->fd, (struct sockaddr *)&name, &bytes) == 0);
    for (size_t index = 0; index < PEERS; index++) {
        struct peer *peer = &world->peers[index];
        if (peer->name_bytes == bytes && memcmp(&peer->name, &name, bytes) == 0)
            return peer;
    }
    return NULL;
}

static void open_session(struct world *world, struct peer *peer, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    CHECK(slot < SLOTS);
    CHECK(world->opened[slot] == 0);     /* the previous session in that slot has ended */
    world->opened[slot] = id;
    world->of_slot[slot] = peer;
    peer->open = true;
    peer->id = id;
}

/* ---- the handler ---- */

static void note_sent(struct peer *peer, int result, uint8_t opcode, const uint8_t *data, size_t bytes)
{
    struct queue *queue = opcode == URS_OPCODE_PONG ? &peer->pongs : &peer->expected;
    if (result == URS_SENT || result == URS_QUEUED)
        queue_add(queue, hash_of_answer(opcode, true, data, bytes));
}

static void send_some(struct world *world, struct peer *peer, uint32_t number)
{
    static const uint8_t opcodes[] = {URS_OPCODE_BINARY, URS_OPCODE_TEXT, URS_OPCODE_PONG};
    uint8_t opcode = opcodes[number % 3];
    size_t bytes = opcode == URS_OPCODE_PONG ? number % 126 : number / 4 % PAYLOAD_BYTES_MAX;
    if (number % 4 != 0)
        bytes %= 300;
    if (peer->open && !peer->ended && !peer->closing)
        note_sent(peer, urs_command_send(world->reactor, peer->id, world->index, opcode, payload, bytes), opcode,
                  payload, bytes);
}

static void close_some(struct world *world, struct peer *peer, uint32_t number)
{
    unsigned code = number % 3 == 0 ? 0 : 1000 + number % 3;
    if (!peer->open || peer->ended || peer->closing)
        return;
    peer->closing = urs_command_close(world->reactor, peer->id, world->index, code, payload, code ? number % 124 : 0)
        == 0;
}

/* Sends more than the reactor collects before it flushes. */
static void send_burst(struct world *world, struct peer *peer)
{
    for (uint32_t number = 0; number < 24; number++)
        send_some(world, peer, 4 * 60000);
}

/* Does anything that a handler may do to a session of its choice. */
static void command(struct world *world, struct peer *peer, uint32_t choice, uint32_t number)
{
    switch (choice % 8) {
    case 0:
    case 1:
        send_some(world, peer, number);
        break;
    case 2:
        send_burst(world, peer);
        break;
    case 3:
        urs_command_pause(world->reactor, peer->id);
        break;
    case 4:
        urs_command_resume(world->reactor, peer->id);
        break;
    case 5:
        close_some(world, peer, number);
        break;
    case 6:
        peer->closing = urs_command_abort(world->reactor, peer->id) == 0 || peer->closing;
        break;
    default:
        urs_command_buffered(world->reactor, peer->id);
        urs_command_latency(world->reactor, peer->id);
        break;
    }
}

static void accept_request(struct world *world, struct peer *peer, uint64_t id, size_t head_bytes)
{
    static const uint8_t yes[] = "HTTP/1.1 101 Go\r\n\r\n";
    if (urs_command_accept(world->reactor, id, yes, sizeof yes - 1, 0) != 0)
        return;
    CHECK(peer != NULL);
    peer->read_by_reference = head_bytes;
    open_session(world, peer, id);
}

/* Answers some of the requests that wait. */
static void answer_some(struct world *world, uint32_t number)
{
    static const uint8_t no[] = "HTTP/1.1 403 No\r\n\r\n";
    for (uint32_t slot = 0; slot < SLOTS; slot++, number = number * 5 + 1) {
        uint64_t id = world->waiting[slot];
        const struct urs_session *session = urs_session_find(&world->reactor->sessions, id);
        if (id == 0 || number % 4 == 0)
            continue;
        world->waiting[slot] = 0;
        if (session == NULL || session->state != URS_SESSION_AWAIT_DECISION)
            CHECK(urs_command_accept(world->reactor, id, no, 0, 0) < 0);
        else if (number % 4 == 1)
            CHECK(urs_command_reject(world->reactor, id, no, number % 8 == 1 ? 0 : sizeof no - 1) == 0 || world->faulty
                  || urs_session_is_lost(session));
        else
            accept_request(world, peer_of_session(world, session), id, world->head_bytes[slot]);
    }
}

static void on_upgrade(struct world *world, const struct urs_event *event, uint32_t number)
{
    static const uint8_t no[] = "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n";
    struct urs_session *session = urs_core_session(world->reactor, event->slot);
    uint64_t id = urs_session_id(session);
    /* Acts as if a proxy had named the peer. */
    const struct urs_peer origin = {.family = number & 8 ? 4 : 6, .address = {[3] = (uint8_t)(number >> 4 & 3)}};
    bool admitted = urs_command_set_proxied_peer(world->reactor, id, &origin) == 0;
    if (event->item.error != 0 || number % 8 == 0 || !admitted) {
        urs_command_reject(world->reactor, id, no, sizeof no - 1);
        return;
    }
    struct peer *peer = session->fd < 0 ? NULL : peer_of_session(world, session);
    CHECK(peer == NULL || peer->written.bytes >= event->item.bytes);
    CHECK(peer == NULL || memcmp(peer->written.data, event->item.payload, event->item.bytes) == 0);
    if (number % 8 == 3 && session->state == URS_SESSION_AWAIT_DECISION) {
        world->waiting[event->slot] = id;
        world->head_bytes[event->slot] = event->item.bytes;
        return;
    }
    accept_request(world, peer, id, event->item.bytes);
}

/* Checks an item that the engine found: the reference must have found the same. */
static struct peer *on_item(struct world *world, const struct urs_event *event)
{
    CHECK(event->slot < SLOTS && world->opened[event->slot] != 0);
    struct peer *peer = world->of_slot[event->slot];
    CHECK(peer->id == urs_session_id(urs_core_session(world->reactor, event->slot)));
    if (event->item.error == -ENOMEM || event->item.error == URS_ERROR_MEMORY_BUDGET)
        return peer;
    peer_consult_reference(peer, &world->rules[peer->adopted].engine);
    /* After our close frame messages are not delivered. */
    bool open = urs_core_session(world->reactor, event->slot)->state == URS_SESSION_OPEN;
    uint64_t expected = queue_take(&peer->items);
    while (!open && expected != hash_of_item(&event->item) && queue_left(&peer->items) > 0)
        expected = queue_take(&peer->items);
    CHECK(expected == hash_of_item(&event->item));
    return peer;
}

static void on_message(struct world *world, struct peer *peer, const struct urs_item *item, uint32_t number)
{
    uint8_t *echo_flag = &world->options.echo_flags[world->index];
    uint64_t echo = hash_of_answer(item->opcode, item->fin, item->payload, item->bytes);
    CHECK(!peer->ended);
    if (!world->echo && !peer->closing) {
        struct peer *other = &world->peers[number / 8 % PEERS];
        if (number % 8 >= 4)
            send_some(world, number % 8 == 4 ? other : peer, number >> 3);
        if (number % 8 == 7 && item->opcode != URS_OPCODE_CONTINUATION)
            note_sent(peer, urs_command_send_event(world->reactor, peer->id, world->index, item->opcode),
                      item->opcode, item->payload, item->bytes);
        /* The fragments of a message are echoed all or not at all: anything else would end the session. */
        *echo_flag = item->opcode == URS_OPCODE_CONTINUATION ? peer->unfinished : number % 4 != 0;
        if (number % 61 == 0)
            command(world, peer, number >> 8, number);
    }
    /* An echo is sent after everything that was sent while its message was handled. */
    if (*echo_flag) {
        queue_add(&peer->expected, echo);
        peer->unfinished = !item->fin;
    }
}

/* Takes messages that are replies already, one by one. */
static void on_answers(struct world *world, const struct urs_event *event)
{
    const uint8_t *end = event->item.payload + event->item.bytes;
    uint32_t count = 0;
    const struct urs_rules *rules = urs_core_rules(world->reactor, urs_core_session(world->reactor, event->slot));
    CHECK(world->echo);
    for (uint8_t *frame = event->item.payload; frame < end; frame += 2 + frame[1], count++) {
        const struct urs_event message = {
            .slot = event->slot,
            .item = {.kind = rules->engine.frames ? URS_ITEM_FRAME : URS_ITEM_MESSAGE, .payload = frame + 2,
                     .bytes = frame[1], .opcode = frame[0] & 0xf, .fin = frame[0] >> 7}};
        on_message(world, on_item(world, &message), &message.item, 0);
    }
    CHECK(count == event->item.count && world->options.echo_flags[world->index] == 1);
}

static void on_event(struct world *world, uint32_t number)
{
    const struct urs_event *event = &world->reactor->events[world->index];
    const struct urs_item *item = &event->item;
    CHECK(urs_core_session(world->reactor, event->slot)->state != URS_SESSION_FREE);
    switch (item->kind) {
    case URS_EVENT_UPGRADE:
        on_upgrade(world, event, number);
        break;
    case URS_EVENT_ABANDONED:
        CHECK(urs_core_session(world->reactor, event->slot)->state >= URS_SESSION_AWAIT_FLUSH);
        break;
    case URS_EVENT_DRAIN:
        CHECK(world->opened[event->slot] != 0);
        break;
    case URS_ITEM_MESSAGE:
    case URS_ITEM_FRAME:
        on_message(world, on_item(world, event), item, number);
        break;
    case URS_ITEM_ECHO_RUN:
        on_answers(world, event);
        break;
    case URS_ITEM_PING:
        queue_add(&on_item(world, event)->pongs, hash_of_answer(URS_OPCODE_PONG, true, item->payload, item->bytes));
        break;
    case URS_ITEM_CLOSE:
    case URS_ITEM_FAILED:
        on_item(world, event)->ended = true;
        break;
    default:
        CHECK(item->kind == URS_EVENT_LOST);
        if (event->slot < SLOTS && world->opened[event->slot] != 0)
            world->of_slot[event->slot]->ended = true;
        break;
    }
}

/* ---- operations ---- */

/* Sessions that are gone must have ended before. */
static void check_gone(struct world *world)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        uint64_t id = world->opened[slot];
        if (id == 0 || urs_session_find(&world->reactor->sessions, id) != NULL)
            continue;
        struct peer *peer = world->of_slot[slot];
        CHECK(peer->id != id || peer->ended);
        world->opened[slot] = 0;
        world->of_slot[slot] = NULL;
    }
}

/* No peer may make the reactor hold more input than one turn can receive: the pool, an opening request, and a
 * buffer. */
static void check_held(const struct world *world)
{
    const struct urs_reactor_options *options = &world->options;
    size_t max = (options->receive_buffers + 2) * options->receive_buffer_bytes + world->rules[0].header_bytes_max
        + PREFIX_BYTES_MAX;
    for (uint32_t slot = 0; slot < world->reactor->sessions.slots; slot++) {
        const struct urs_session *session = urs_core_session(world->reactor, slot);
        CHECK(session->held.block == NULL || urs_slice_bytes(&session->held) <= max);
    }
}

/* Only a watch that was not ended is reported. */
static void take_watches(struct world *world)
{
    uint64_t ids[4];
    uint32_t count = urs_reactor_take_watches(world->reactor, ids, URS_COUNT(ids));
    CHECK(count == 0 || (count == 1 && ids[0] == world->watch));
    world->reports += count;
}

/* Returns the number of events. */
static uint32_t turn(struct world *world, uint32_t seed)
{
    if (world->broken)
        return 0;
    int count = urs_reactor_turn(world->reactor, 0, world->echo);
    check_gone(world);
    check_held(world);
    take_watches(world);
    if (count < 0) {
        CHECK(world->faulty || count == -EINTR);
        world->broken = count != -EINTR;
        return 0;
    }
    for (world->index = 0; world->index < (uint32_t)count; world->index++)
        on_event(world, next_number(&seed));
    *world->options.handled = (uint32_t)count;
    answer_some(world, next_number(&seed));
    /* The next turn does the same first; between the two, commands meet a reactor without events. */
    if (seed % 4 == 0) {
        int left = urs_reactor_flush(world->reactor);
        check_gone(world);
        CHECK(left == 0 || (left < 0 && world->faulty));
        world->broken = left < 0;
    }
    return (uint32_t)count;
}

static void end_faults(void)
{
    allocations_left = 0;
    for (int point = 0; point < URS_FAULT_POINTS; point++)
        urs_fault_plan(point, 0, 0, 0);
}

/* Moves all bytes that can move, until several turns in a row move none and bring no event. */
static void settle(struct world *world, uint32_t seed)
{
    const struct urs_reactor_stats *stats = &world->reactor->stats;
    uint64_t before = 0;
    uint32_t quiet = 0;
    for (uint32_t round = 0; quiet < QUIET_TURNS && !world->broken; round++) {
        CHECK(round < SETTLE_TURNS_MAX);
        size_t moved = turn(world, round < SETTLE_TURNS_MAX / 2 ? seed + round : QUIET)
            + world->reactor->feed_list.count + world->reactor->dirty.count + world->reactor->late_count
            + urs_intake_waiting(world->reactor);
        for (size_t index = 0; index < PEERS; index++)
            moved += peer_read(&world->peers[index], READ_BYTES_MAX, drops(world));
        quiet = moved > 0 || stats->bytes_in + stats->bytes_out != before ? 0 : quiet + 1;
        before = stats->bytes_in + stats->bytes_out;
    }
}

/* A watch is reported in each turn while there is something to read, and in no other. */
static void check_watch(struct world *world)
{
    turn(world, QUIET);                  /* a report may still be on its way */
    uint32_t before = world->reports;
    turn(world, QUIET);
    bool delayed = world->watch != 0 && world->reactor->watches.all[(uint32_t)world->watch].state == URS_WATCH_DELAYED;
    if (!world->broken && !delayed)
        CHECK(world->reports - before == (world->watch != 0 && world->filled));
}

/* After settling: all written items must have been found, and all expected frames received. */
static void check_settled(struct world *world)
{
    for (size_t index = 0; index < PEERS && !world->broken && !world->faulty; index++) {
        struct peer *peer = &world->peers[index];
        const struct urs_session *session = urs_session_find(&world->reactor->sessions, peer->id);
        if (session == NULL || peer->fd < 0 || session->state != URS_SESSION_OPEN
            || urs_session_is_on(session, URS_LIST_RETRIES))
            continue;
        CHECK(session->backlog.bytes == 0 && session->outbound.first == 0);
        CHECK((session->input_stopped_by & URS_STOPPED_BY_BACKLOG) == 0);
        CHECK(peer->parsed == peer->received.bytes);
        while (queue_left(&peer->expected) > 0)
            CHECK((queue_take(&peer->expected) & 1) != 0 || drops(world));
        if (urs_session_is_paused(session))
            continue;
        peer_consult_reference(peer, &world->rules[peer->adopted].engine);
        CHECK(session->held.block == NULL && queue_left(&peer->items) == 0);
    }
}

static void connect_peer(struct world *world, struct peer *peer)
{
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    peer->used = true;
    peer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The kernel chooses a name, which tells the peers apart. */
    CHECK(peer->fd >= 0 && bind(peer->fd, (struct sockaddr *)&any, sizeof any.sun_family) == 0);
    peer->name_bytes = sizeof peer->name;
    CHECK(getsockname(peer->fd, (struct sockaddr *)&peer->name, &peer->name_bytes) == 0);
    CHECK(connect(peer->fd, (struct sockaddr *)&world->address, world->address_bytes) == 0);
}

static void adopt_peer(struct world *world, struct peer *peer, struct input *input)
{
    int pair[2];
    uint32_t seed = take_byte(input);
    uint64_t id;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &world->send_buffer_bytes, sizeof(int)) == 0);
    if (seed % 2 == 1)
        add_record(&peer->written, input, &seed);
    if (peer->written.bytes > PREFIX_BYTES_MAX)
        peer->written.bytes = PREFIX_BYTES_MAX;
    peer->used = peer->adopted = true;
    peer->fd = pair[0];
    if (urs_reactor_adopt(world->reactor, pair[1], ADOPTED, 0, peer->written.data, peer->written.bytes, &id) == 0)
        open_session(world, peer, id);
    else
        close(pair[1]);
}

/* Writes a whole opening request, or a part of one. */
static void write_request(struct peer *peer, struct input *input)
{
    static const uint8_t request[] = "GET / HTTP/1.1\r\nA: b\r\n\r\n";
    size_t from = take_byte(input) % (sizeof request - 1);
    size_t bytes = sizeof request - 1 - from;
    if (from > 0)
        bytes = take_byte(input) % (bytes + 1);
    peer_write(peer, request + from, bytes, 0);
}

static void plan_fault(struct input *input)
{
    static const int32_t sends[] = {1, 7, 300, -EAGAIN, -EINTR, -ENOBUFS, -ENOMEM, -EPIPE, -ECONNRESET};
    static const int32_t receives[] = {1, 3, 200, -EAGAIN, -EINTR, -ENOMEM, -ENOBUFS, -ECONNRESET};
    static const int32_t accepts[] = {-EAGAIN, -EINTR, -ECONNABORTED, -EMFILE, -ENFILE, -ENOMEM, -EPROTO};
    uint8_t choice = take_byte(input);
    uint8_t from = take_byte(input);
    uint8_t row = choice / 5;
    uint64_t count = from % 16 + 1u;
    switch (choice % 5) {
    case 0:
        urs_fault_plan(URS_FAULT_SEND, from / 16 + 1u, count, sends[row % URS_COUNT(sends)]);
        break;
    case 1:
        urs_fault_plan(URS_FAULT_RECEIVE, from / 16 + 1u, count, receives[row % URS_COUNT(receives)]);
        break;
    case 2:
        urs_fault_plan(URS_FAULT_ACCEPT, from / 16 + 1u, count, accepts[row % URS_COUNT(accepts)]);
        break;
    case 3:
        urs_fault_plan(URS_FAULT_ARM, from / 16 + 1u, count, -ENOMEM);
        break;
    default:
        urs_fault_plan(URS_FAULT_ENTER, from / 16 + 1u, 1, -EINTR);
        break;
    }
}

/* Watches the pipe, ends the watch, or fills or empties the pipe. */
static void change_watch(struct world *world, uint8_t choice)
{
    char byte = 0;
    if (choice % 4 == 0 && world->watch == 0 && !world->broken) {
        int error = urs_reactor_watch(world->reactor, world->pipe[0], false, &world->watch);
        CHECK(error == 0 || error == -ENOMEM);  /* also where a fault of URS_FAULT_ARM is planned */
    } else if (choice % 4 == 1 && world->watch != 0) {
        CHECK(urs_reactor_unwatch(world->reactor, world->watch) == 0);
        CHECK(urs_reactor_unwatch(world->reactor, world->watch) == URS_ERROR_STALE);
        world->watch = 0;
    } else if (choice % 4 == 2 && !world->filled) {
        CHECK(write(world->pipe[1], &byte, 1) == 1);
        world->filled = true;
    } else if (choice % 4 == 3 && world->filled) {
        CHECK(read(world->pipe[0], &byte, 1) == 1);
        world->filled = false;
    }
}

static void end_some(struct world *world, uint8_t choice)
{
    if (choice >= 128) {
        change_watch(world, choice);
    } else if (choice % 4 == 0) {
        urs_reactor_stop_listening(world->reactor);
    } else if (choice % 4 == 1) {
        urs_reactor_drain(world->reactor, world->index, URS_CLOSE_GOING_AWAY);
        for (size_t index = 0; index < PEERS; index++)
            world->peers[index].closing = world->peers[index].open;
    } else if (choice % 4 == 2) {
        urs_reactor_cut(world->reactor);
    } else {
        urs_reactor_wake(world->reactor);
    }
}

static void hang_up(struct peer *peer)
{
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

/* Performs an operation of a peer. */
static void act_as_peer(struct world *world, struct peer *peer, enum operation operation, struct input *input,
                        uint32_t seed)
{
    struct string wire = {0};
    size_t bytes;
    switch (operation) {
    case REQUEST:
        write_request(peer, input);
        break;
    case FRAME:
        add_record(&wire, input, &seed);
        peer_write(peer, wire.data, wire.bytes, 0);
        break;
    case RAW:
        bytes = take_byte(input);
        const uint8_t *raw = take_bytes(input, &bytes);
        peer_write(peer, raw, bytes, 0);
        break;
    case READ:
        peer_read(peer, 4 * (size_t)take_16(input), drops(world));
        break;
    case HALF_CLOSE:
        if (peer->fd >= 0)
            shutdown(peer->fd, SHUT_WR);
        break;
    case ANSWER_PING:
        seed = take_byte(input);
        add_masked(&wire, 0x80 | (seed & 1 ? URS_OPCODE_PING : URS_OPCODE_PONG), peer->ping, sizeof peer->ping, payload);
        peer_write(peer, wire.data, wire.bytes, seed / 2);
        break;
    default:
        hang_up(peer);
        break;
    }
    string_free(&wire);
}

/* Performs an operation of the server side, or one that happens to it. */
static void act_as_server(struct world *world, struct peer *peer, enum operation operation, struct input *input)
{
    uint32_t choice;
    switch (operation) {
    case TURN:
        turn(world, take_16(input));
        break;
    case COMMAND:
        choice = take_byte(input);
        command(world, peer, choice, take_16(input));
        break;
    case FAULT:
        plan_fault(input);
        break;
    case NO_MEMORY:
        allocations_left = take_byte(input);
        world->faulty = world->faulty || allocations_left > 0;
        break;
    case SETTLE:
        end_faults();
        settle(world, take_16(input));
        check_settled(world);
        check_watch(world);
        break;
    default:
        end_some(world, take_byte(input));
        break;
    }
}

static void operate(struct world *world, struct input *input)
{
    uint8_t byte = take_byte(input);
    enum operation operation = (enum operation)(byte & 15);
    struct peer *peer = &world->peers[byte >> 4];
    switch (operation) {
    case CONNECT:
        if (!peer->used)
            connect_peer(world, peer);
        break;
    case ADOPT:
        if (!peer->used)
            adopt_peer(world, peer, input);
        break;
    case TIME_PASSES:
        clock_ms += 4 * (uint64_t)take_16(input) + byte / 16;
        break;
    case REQUEST:
    case FRAME:
    case RAW:
    case READ:
    case HALF_CLOSE:
    case HANG_UP:
    case ANSWER_PING:
        act_as_peer(world, peer, operation, input, byte);
        break;
    case TURN:
    case COMMAND:
    case FAULT:
    case NO_MEMORY:
    case END:
    case SETTLE:
        act_as_server(world, peer, operation, input);
        break;
    }
}

/* ---- beginning and end ---- */

static void read_deadlines(struct urs_rules *rules, uint8_t times)
{
    rules->handshake_ms = times & 1 ? 3000 : 0;
    rules->idle_ms = times & 2 ? 5000 : 0;
    rules->ping_interval_ms = times & 4 ? 1000 : 0;
    rules->ping_timeout_ms = times & 8 ? 1500 : 0;
    rules->close_ms = times & 16 ? 2000 : 0;
    rules->session_ms = times & 32 ? 20000 : 0;
}

/* Adopted sessions have other limits, and bring frames where accepted ones bring messages. */
static void set_adopted_rules(struct world *world)
{
    struct urs_rules *rules = &world->rules[ADOPTED];
    *rules = world->rules[0];
    rules->engine.frames = !rules->engine.frames;
    rules->engine.message_bytes_max = rules->engine.message_bytes_max / 2 + 1;
    rules->on_full = (rules->on_full + 1) % 3;
    rules->idle_ms /= 2;
}

static void read_options(struct world *world, struct input *input)
{
    struct urs_reactor_options *options = &world->options;
    struct urs_rules *rules = &world->rules[0];
    static uint8_t echo_flags[URS_EVENTS_MAX];
    static uint32_t handled;
    uint8_t flags = take_byte(input);
    uint8_t sizes = take_byte(input);
    uint8_t limits = take_byte(input);
    uint8_t times = take_byte(input);
    uint8_t message = take_byte(input);
    uint8_t backlog = take_byte(input);
    world->echo = flags & 1;
    world->send_buffer_bytes = 2048 << (sizes >> 6);
    options->echo_flags = echo_flags;
    options->handled = &handled;
    static uint8_t busy[] = "HTTP/1.1 503 No\r\n\r\n";
    for (size_t why = 0; why < URS_REFUSALS; why++)
        rules->refusals[why] = (struct urs_answer){.data = busy, .bytes = sizeof busy - 1};
    rules->engine.frames = (flags & 6) == 6;
    rules->engine.refuse_text = (flags & 24) == 8;
    rules->engine.refuse_binary = (flags & 24) == 16;
    rules->proxy_protocol = flags & 32;
    world->is_unix = (flags & 64) == 0;
    options->receive_buffers = 2u << (sizes & 3);
    options->fanout_turn_max = 1 + (sizes & 7);
    options->receive_buffer_bytes = (size_t)256 << (sizes >> 2 & 7);
    rules->engine.message_bytes_max = UINT64_C(1) << (message & 31);
    rules->backlog_bytes_max = UINT64_C(256) << (backlog & 15);
    rules->backlog_high_bytes = rules->backlog_bytes_max / 2;
    rules->backlog_low_bytes = rules->backlog_bytes_max / 8;
    rules->on_full = (backlog >> 4) % 3;
    options->sessions_max = limits & 1 ? 3 : 0;
    options->sessions_per_ip_max = flags & 128 ? 2 : 0;
    options->handshakes_max = limits & 2 ? 2 : 0;
    options->silent_ms = 500;
    options->memory_bytes_max = limits & 4 ? 100000 : 0;
    rules->header_bytes_max = limits & 8 ? 64 : 1024;
    rules->session_turn_bytes_max = limits & 16 ? 600 : 65536;
    rules->session_turn_messages_max = limits & 16 ? 3 : 64;
    read_deadlines(rules, times);
    set_adopted_rules(world);
    world->abandon = (times & 192) == 192;
    world->cut = (times & 192) == 128;
}

static void begin(struct world *world)
{
    struct urs_io_report report;
    size_t bytes = urs_pool_bytes(world->options.receive_buffers, world->options.receive_buffer_bytes);
    world->options.pool_memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    CHECK(world->options.pool_memory != NULL);
    world->reactor = urs_reactor_open("epoll", &world->options, &world->rules[0], &report);
    CHECK(world->reactor != NULL && urs_reactor_start(world->reactor) == 0);
    CHECK(urs_reactor_add_rules(world->reactor, &world->rules[ADOPTED]) == ADOPTED);

    world->address.sun_family = AF_UNIX;
    world->address_bytes = sizeof world->address;
    CHECK(pipe2(world->pipe, O_CLOEXEC) == 0);
    world->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(world->listener, (struct sockaddr *)&world->address, sizeof world->address.sun_family) == 0);
    CHECK(getsockname(world->listener, (struct sockaddr *)&world->address, &world->address_bytes) == 0);
    CHECK(setsockopt(world->listener, SOL_SOCKET, SO_SNDBUF, &world->send_buffer_bytes, sizeof(int)) == 0);
    CHECK(listen(world->listener, PEERS) == 0);
    CHECK(urs_reactor_listen(world->reactor, world->listener, world->is_unix, 0) == 0);
    for (size_t index = 0; index < PEERS; index++)
        world->peers[index].fd = -1;
}

/* Every session must end by itself once its peer is gone; then nothing may be left. */
static void check_end(struct world *world)
{
    struct urs_reactor_stats stats;
    for (size_t index = 0; index < PEERS; index++)
        urs_command_resume(world->reactor, world->peers[index].id);
    if (world->cut)
        urs_reactor_cut(world->reactor);
    for (uint32_t round = 0, after = 0; round < SETTLE_TURNS_MAX && after < 2; round++) {
        clock_ms += 100;
        turn(world, QUIET);
        after += urs_reactor_sessions(world->reactor) == 0;
    }
    if (world->broken)
        return;
    urs_reactor_read_stats(world->reactor, &stats);
    CHECK(stats.sessions == 0 && stats.handshakes == 0);
    CHECK(stats.memory_bytes == 0 && stats.queued_bytes == 0 && stats.pool_in_use == 0);
    for (size_t index = 0; index < PEERS; index++)
        CHECK(!world->peers[index].open || world->peers[index].ended);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input input = {.next = data, .end = data + bytes};
    static struct world world;
    world = (struct world){0};
    clock_ms = UINT64_C(1) << 40;
    read_options(&world, &input);
    begin(&world);
    for (int count = 0; input_left(&input) > 0 && count < OPERATIONS_MAX; count++)
        operate(&world, &input);
    end_faults();
    for (size_t index = 0; index < PEERS; index++)
        hang_up(&world.peers[index]);
    if (!world.abandon)
        check_end(&world);
    urs_reactor_close(world.reactor);
    close(world.listener);
    close(world.pipe[0]);
    close(world.pipe[1]);
    for (size_t index = 0; index < PEERS; index++)
        peer_reset(&world.peers[index]);
    free(world.options.pool_memory);
    return 0;
}
