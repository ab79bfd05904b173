/* Fuzzes topics alone: memberships against a table of booleans, the messages that wait in a member's backlog against a
 * list, and a history against the last messages. Any allocation may fail.
 *
 * The input consists of operations: one byte names an operation, the next ones its topic and session. */
#include "allocate.h"
#include "topics.h"

enum { TOPICS = 6, SESSIONS = 12, OPERATIONS_MAX = 400, WAITING_MAX = 512, HISTORY_MAX = 5 };

enum operation { ADD, REMOVE, LEAVE, PUBLISH, DROP, CONSUME, RELEASE, SWEEP, NO_MEMORY, OPERATIONS };

/* A message in the backlog of a session. */
struct waiting {
    uint32_t topic;                      /* index of the fuzz table */
    uint8_t value;
    bool begun;
};

struct world {
    struct urs_topics topics;
    struct urs_memory memory;
    struct urs_sessions sessions;
    struct urs_session *session[SESSIONS];
    struct urs_topic *topic[TOPICS];     /* NULL: released and freed */
    bool member[TOPICS][SESSIONS];
    struct waiting waiting[SESSIONS][WAITING_MAX];
    uint32_t waiting_count[SESSIONS];
    uint8_t history[TOPICS][HISTORY_MAX];
    uint32_t history_count[TOPICS];
    uint8_t value;
};

static void open_topic(struct world *world, uint32_t number)
{
    static const uint8_t policies[] = {URS_TOPIC_CLOSE, URS_TOPIC_DROP_OLD, URS_TOPIC_CONFLATE};
    world->topic[number] = urs_topics_new(&world->topics, policies[number % 3]);
    if (world->topic[number] != NULL)
        world->topic[number]->history.limits = (struct urs_history_limits){
            .messages_max = number < 3 ? HISTORY_MAX : 0, .bytes_max = 1 << 20};
    world->history_count[number] = 0;
}

/* Takes one message off the model of a backlog. */
static void forget(struct world *world, uint32_t session, uint32_t at)
{
    struct waiting *list = world->waiting[session];
    memmove(list + at, list + at + 1, (--world->waiting_count[session] - at) * sizeof *list);
}

/* Returns the oldest whole message of the topic in the model, or UINT32_MAX. */
static uint32_t oldest(const struct world *world, uint32_t topic, uint32_t session)
{
    for (uint32_t at = 0; at < world->waiting_count[session]; at++)
        if (world->waiting[session][at].topic == topic && !world->waiting[session][at].begun)
            return at;
    return UINT32_MAX;
}

/* Drops a message from the backlog, and checks that it is the one that the model would drop. */
static void drop(struct world *world, uint32_t topic, uint32_t session)
{
    struct urs_chain *backlog = &world->session[session]->backlog;
    uint32_t place = urs_topic_place(world->topic[topic], world->session[session]);
    if (place == UINT32_MAX || world->topic[topic]->hints == NULL)
        return;
    uint32_t at = urs_topic_waiting(&world->topics, world->topic[topic], place, backlog);
    uint32_t expected = oldest(world, topic, session);
    if (at == UINT32_MAX) {
        /* A message from before the session joined again may be left alone. */
        return;
    }
    CHECK(expected != UINT32_MAX);
    uint8_t value = *urs_slice_data(urs_chain_at(backlog, at));
    while (expected < world->waiting_count[session] && world->waiting[session][expected].value != value)
        expected++;
    CHECK(expected < world->waiting_count[session] && world->waiting[session][expected].topic == topic);
    urs_chain_drop(backlog, at);
    forget(world, session, expected);
}

static void publish(struct world *world, uint32_t number, size_t bytes)
{
    uint8_t frame[300];
    struct urs_topic *topic = world->topic[number];
    struct urs_publication publication = {.data = frame, .bytes = (uint32_t)bytes, .topic = topic->index + 1};
    memset(frame, ++world->value, bytes);
    if (urs_topics_keep(&world->topics, &world->memory, &publication) != 0) {
        urs_history_clear(&topic->history);
        world->history_count[number] = 0;
        return;
    }
    for (uint32_t session = 0; session < SESSIONS; session++) {
        struct urs_chain *backlog = &world->session[session]->backlog;
        uint32_t pong = 0;
        if (!world->member[number][session] || world->waiting_count[session] == WAITING_MAX)
            continue;
        uint32_t place = urs_topic_place(topic, world->session[session]);
        if (topic->on_full == URS_TOPIC_CONFLATE)
            drop(world, number, session);
        if (topic->hints != NULL) {
            if (urs_chain_is_full(backlog))
                urs_chain_compact(backlog, &pong);
            urs_topic_note_next(topic, place, backlog);
        }
        urs_block_hold(publication.kept.block);
        if (urs_chain_push(backlog, &world->memory, publication.kept) != 0) {
            urs_block_drop(publication.kept.block);
            continue;
        }
        world->waiting[session][world->waiting_count[session]++] = (struct waiting){number, world->value, false};
    }
    if (topic->history.limits.messages_max > 0) {
        uint8_t *history = world->history[number];
        uint32_t *count = &world->history_count[number];
        if (urs_history_add(&topic->history, publication.kept, 0) != 0) {
            *count = 0;
        } else {
            if (*count == HISTORY_MAX)
                memmove(history, history + 1, --*count);
            history[(*count)++] = world->value;
        }
    }
    urs_slice_drop(&publication.kept);
}

/* ---- checks -------------------------------------------------------------------------------------------------- */

/* The bytes of the backlog are those of the messages of the model, in order. */
static void check_backlog(const struct world *world, uint32_t session)
{
    const struct urs_chain *backlog = &world->session[session]->backlog;
    uint32_t at = 0;
    uint8_t value = 0;
    bool any = false;
    for (uint32_t place = 0; place < backlog->count; place++) {
        const struct urs_slice *slice = urs_chain_at(backlog, place);
        for (size_t byte = 0; byte < urs_slice_bytes(slice); byte++) {
            uint8_t found = urs_slice_data(slice)[byte];
            if (!any || found != value) {
                CHECK(at < world->waiting_count[session] && world->waiting[session][at].value == found);
                at++;
            }
            value = found;
            any = true;
        }
    }
    CHECK(at == world->waiting_count[session]);
}

static void check(const struct world *world)
{
    for (uint32_t number = 0; number < TOPICS; number++) {
        const struct urs_topic *topic = world->topic[number];
        uint32_t count = 0;
        for (uint32_t session = 0; session < SESSIONS && topic != NULL; session++) {
            bool is_member = urs_topic_place(topic, world->session[session]) != UINT32_MAX;
            CHECK(is_member == world->member[number][session]);
            count += is_member;
        }
        CHECK(topic == NULL || topic->count == count);
        CHECK(topic == NULL || topic->history.count == world->history_count[number]);
        for (uint32_t place = 0; topic != NULL && place < topic->history.count; place++)
            CHECK(*urs_slice_data(&urs_history_at(&topic->history, place)->frame) == world->history[number][place]);
    }
    for (uint32_t session = 0; session < SESSIONS; session++)
        check_backlog(world, session);
}

/* ---- operations ---------------------------------------------------------------------------------------------- */

static void leave(struct world *world, uint32_t session)
{
    urs_topics_leave(&world->topics, &world->sessions, world->session[session]);
    for (uint32_t number = 0; number < TOPICS; number++)
        world->member[number][session] = false;
}

/* Lets go of a topic, and makes another one in its place. */
static void release(struct world *world, uint32_t number)
{
    for (uint32_t session = 0; session < SESSIONS; session++)
        if (world->member[number][session] || oldest(world, number, session) != UINT32_MAX)
            return;
    urs_history_clear(&world->topic[number]->history);
    urs_topics_release(&world->topics, world->topic[number]);
    open_topic(world, number);
}

static void consume(struct world *world, uint32_t session, size_t bytes)
{
    struct urs_chain *backlog = &world->session[session]->backlog;
    bytes = urs_min(bytes, backlog->bytes);
    urs_chain_consume(backlog, bytes);
    uint8_t first = backlog->bytes == 0 ? 0 : *urs_slice_data(urs_chain_at(backlog, 0));
    while (world->waiting_count[session] > 0 && (backlog->bytes == 0 || world->waiting[session][0].value != first))
        forget(world, session, 0);
    if (world->waiting_count[session] > 0)
        world->waiting[session][0].begun = urs_chain_at(backlog, 0)->start != URS_BLOCK_HEADROOM;
}

static void operate(struct world *world, struct input *input)
{
    enum operation operation = take_byte(input) % OPERATIONS;
    uint32_t number = take_byte(input) % TOPICS;
    uint32_t session = take_byte(input) % SESSIONS;
    if (operation == NO_MEMORY) {
        allocations_left = session + 1;
        return;
    }
    if (operation == SWEEP)
        urs_topics_sweep(&world->topics);
    if (operation == LEAVE)
        leave(world, session);
    if (operation == CONSUME)
        consume(world, session, take_16(input));
    if (world->topic[number] == NULL)
        open_topic(world, number);
    if (world->topic[number] == NULL)
        return;
    if (operation == ADD) {
        int result = urs_topic_add(world->topic[number], world->session[session]);
        CHECK(result <= 1 && (result == 1) == (result >= 0 && world->member[number][session]));
        world->member[number][session] = world->member[number][session] || result == 0;
    } else if (operation == REMOVE) {
        CHECK(urs_topic_remove(&world->topics, &world->sessions, world->topic[number], world->session[session])
              == world->member[number][session]);
        world->member[number][session] = false;
    } else if (operation == PUBLISH) {
        publish(world, number, 1 + take_byte(input));
    } else if (operation == DROP) {
        drop(world, number, session);
    } else if (operation == RELEASE) {
        release(world, number);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct world world;
    struct input input = {.next = data, .end = data + bytes};
    memset(&world, 0, sizeof world);
    allocations_left = 0;
    for (uint32_t session = 0; session < SESSIONS; session++) {
        world.session[session] = urs_session_new(&world.sessions, 1);
        CHECK(world.session[session] != NULL);
    }
    for (uint32_t count = 0; count < OPERATIONS_MAX && input_left(&input) > 0; count++) {
        operate(&world, &input);
        check(&world);
    }
    allocations_left = 0;
    for (uint32_t session = 0; session < SESSIONS; session++) {
        leave(&world, session);
        urs_session_drop_memory(world.session[session]);
    }
    urs_topics_sweep(&world.topics);
    urs_topics_close(&world.topics);
    CHECK(world.memory.bytes_used == 0);
    urs_memory_clear(&world.memory);
    urs_sessions_close(&world.sessions);
    return 0;
}
