/* Topics: dense arrays of members, and per session a small hash table of its memberships. */
#include "topics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    PLACES_MIN = 16,
    MEMBERS_MIN = 4,
    MEMBERSHIPS_MIN = 4,
    LOG_BYTES_MAX = 32 * 1024,           /* a log's block is at most so large, or as large as its only frame */
    LOGS_PER_SWEEP_MAX = 16
};

/* ---- the table of topics ------------------------------------------------------------------------------------- */

static int grow_places(struct urs_topics *topics)
{
    uint32_t room = (uint32_t)urs_max(PLACES_MIN, 2 * (size_t)topics->places_room);
    uint32_t *unused = realloc(topics->unused, room * sizeof *unused);
    if (unused == NULL)
        return -ENOMEM;
    topics->unused = unused;
    uint32_t *logs = realloc(topics->logs, room * sizeof *logs);
    if (logs == NULL)
        return -ENOMEM;
    topics->logs = logs;
    struct urs_topic_place *places = realloc(topics->places, room * sizeof *places);
    if (places == NULL)
        return -ENOMEM;
    topics->places = places;
    topics->places_room = room;
    return 0;
}

struct urs_topic *urs_topics_new(struct urs_topics *topics, enum urs_topic_on_full on_full)
{
    if (topics->count >= URS_TOPICS_MAX)
        return NULL;
    if (topics->free_first == 0 && topics->places_used == topics->places_room && grow_places(topics) != 0)
        return NULL;
    struct urs_topic *topic = calloc(1, sizeof *topic);
    if (topic == NULL)
        return NULL;
    uint32_t index;
    if (topics->free_first != 0) {
        index = topics->free_first - 1;
        topics->free_first = topics->places[index].next_free;
    } else {
        index = topics->places_used++;
        topics->places[index] = (struct urs_topic_place){0};
    }
    struct urs_topic_place *place = &topics->places[index];
    URS_ASSERT(place->topic == NULL && (place->generation & 1) == 0);
    place->topic = topic;
    place->generation++;
    topics->count++;
    topic->index = index;
    topic->on_full = (uint8_t)on_full;
    topic->held = true;
    return topic;
}

static void free_topic(struct urs_topics *topics, struct urs_topic *topic)
{
    struct urs_topic_place *place = &topics->places[topic->index];
    URS_ASSERT(topic->count == 0 && place->topic == topic && topics->count > 0);
    place->topic = NULL;
    place->generation++;
    /* After 2^31 topics the next one would repeat an id: the place is never used again. */
    if (place->generation != 0) {
        place->next_free = topics->free_first;
        topics->free_first = topic->index + 1;
    }
    topics->count--;
    urs_history_clear(&topic->history);
    urs_slice_drop(&topic->log);
    free(topic->members);
    free(topic->hints);
    free(topic->drops);
    free(topic);
}

static bool is_used(const struct urs_topic *topic)
{
    return topic->held || topic->count > 0 || topic->logged || topic->history.count > 0;
}

/* Puts a topic on the list for the next sweep if nothing uses it any more. It is not freed here, because a frame of this
 * turn may still refer to it. */
static void note_unused(struct urs_topics *topics, struct urs_topic *topic)
{
    if (topic->unused || is_used(topic))
        return;
    URS_ASSERT(topics->unused_count < topics->places_room);
    topic->unused = true;
    topics->unused[topics->unused_count++] = topic->index;
}

void urs_topics_release(struct urs_topics *topics, struct urs_topic *topic)
{
    topic->held = false;
    note_unused(topics, topic);
}

void urs_topics_expire(struct urs_topics *topics, uint64_t now_ms)
{
    for (uint32_t index = 0; index < topics->places_used; index++) {
        struct urs_topic *topic = topics->places[index].topic;
        if (topic == NULL)
            continue;
        urs_history_expire(&topic->history, now_ms);
        note_unused(topics, topic);
    }
}

static void drop_log(struct urs_slice *log)
{
    if (log->block != NULL && urs_block_is_sole(log->block))
        urs_slice_drop(log);
}

/* Drops the logs that no backlog refers to; each call looks at a few. */
static void drop_logs(struct urs_topics *topics)
{
    drop_log(&topics->log);
    for (uint32_t looks = 0; looks < LOGS_PER_SWEEP_MAX && topics->log_count > 0; looks++) {
        uint32_t at = topics->log_at++ % topics->log_count;
        struct urs_topic *topic = topics->places[topics->logs[at]].topic;
        URS_ASSERT(topic != NULL && topic->logged);
        drop_log(&topic->log);
        if (topic->log.block == NULL) {
            topic->logged = false;
            topics->logs[at] = topics->logs[--topics->log_count];
            note_unused(topics, topic);
        }
    }
}

void urs_topics_sweep(struct urs_topics *topics)
{
    drop_logs(topics);
    for (uint32_t number = 0; number < topics->unused_count; number++) {
        struct urs_topic *topic = topics->places[topics->unused[number]].topic;
        URS_ASSERT(topic != NULL && topic->unused);
        topic->unused = false;
        if (!is_used(topic))
            free_topic(topics, topic);
    }
    topics->unused_count = 0;
}

void urs_topics_close(struct urs_topics *topics)
{
    for (uint32_t index = 0; index < topics->places_used; index++)
        if (topics->places[index].topic != NULL)
            free_topic(topics, topics->places[index].topic);
    free(topics->places);
    urs_slice_drop(&topics->log);
    free(topics->unused);
    free(topics->logs);
    *topics = (struct urs_topics){0};
}

/* ---- the memberships of a session ---------------------------------------------------------------------------- */

static uint32_t home(const struct urs_memberships *table, uint32_t topic)
{
    return (topic * 2654435769u >> 7) & (table->room - 1);
}

/* Returns the entry of a topic, given by its index + 1, or the empty entry where it belongs. */
static struct urs_membership *entry_of(struct urs_memberships *table, uint32_t topic)
{
    uint32_t at = home(table, topic);
    while (table->entries[at].topic != 0 && table->entries[at].topic != topic)
        at = (at + 1) & (table->room - 1);
    return &table->entries[at];
}

/* Ensures room for one more membership. The table is never more than three quarters full, so a search always ends. */
static int reserve_membership(struct urs_session *session)
{
    struct urs_memberships *old = session->memberships;
    if (old != NULL && 4 * (old->count + 1) <= 3 * old->room)
        return 0;
    uint32_t room = old == NULL ? MEMBERSHIPS_MIN : 2 * old->room;
    struct urs_memberships *grown = calloc(1, sizeof *grown + room * sizeof grown->entries[0]);
    if (grown == NULL)
        return -ENOMEM;
    grown->room = room;
    for (uint32_t at = 0; old != NULL && at < old->room; at++)
        if (old->entries[at].topic != 0)
            *entry_of(grown, old->entries[at].topic) = old->entries[at];
    grown->count = old == NULL ? 0 : old->count;
    free(old);
    session->memberships = grown;
    return 0;
}

/* Empties an entry, and moves up the entries after it whose search would now end there. */
static void remove_entry(struct urs_memberships *table, struct urs_membership *entry)
{
    uint32_t mask = table->room - 1;
    uint32_t hole = (uint32_t)(entry - table->entries);
    for (uint32_t at = (hole + 1) & mask; table->entries[at].topic != 0; at = (at + 1) & mask) {
        uint32_t from = home(table, table->entries[at].topic);
        if (((at - from) & mask) >= ((at - hole) & mask)) {
            table->entries[hole] = table->entries[at];
            hole = at;
        }
    }
    table->entries[hole] = (struct urs_membership){0};
    table->count--;
}

/* ---- members ------------------------------------------------------------------------------------------------- */

uint32_t urs_topic_place(const struct urs_topic *topic, const struct urs_session *session)
{
    if (session->memberships == NULL)
        return UINT32_MAX;
    const struct urs_membership *entry = entry_of(session->memberships, topic->index + 1);
    URS_ASSERT(entry->topic == 0 || topic->members[entry->place] == session->slot);
    return entry->topic == 0 ? UINT32_MAX : entry->place;
}

static int grow(uint32_t **array, uint32_t room)
{
    uint32_t *grown = realloc(*array, room * sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    *array = grown;
    return 0;
}

/* Whether a message of the topic that waits in a backlog can be found again, to be left out. */
static bool labels(const struct urs_topic *topic)
{
    return topic->on_full == URS_TOPIC_DROP_OLD || topic->on_full == URS_TOPIC_CONFLATE;
}

static int reserve_member(struct urs_topic *topic)
{
    if (topic->count < topic->room)
        return 0;
    uint32_t room = (uint32_t)urs_max(MEMBERS_MIN, topic->room + (size_t)topic->room / 2);
    if (grow(&topic->members, room) != 0 || (labels(topic) && grow(&topic->hints, room) != 0)
        || (topic->drops != NULL && grow(&topic->drops, room) != 0))
        return -ENOMEM;
    topic->room = room;
    return 0;
}

int urs_topic_add(struct urs_topic *topic, struct urs_session *session)
{
    if (urs_topic_place(topic, session) != UINT32_MAX)
        return 1;
    if (reserve_membership(session) != 0)
        return -ENOMEM;
    if (reserve_member(topic) != 0) {
        if (session->memberships->count == 0) {
            free(session->memberships);
            session->memberships = NULL;
        }
        return -ENOMEM;
    }
    struct urs_membership *entry = entry_of(session->memberships, topic->index + 1);
    URS_ASSERT(entry->topic == 0);
    *entry = (struct urs_membership){.topic = topic->index + 1, .place = topic->count};
    session->memberships->count++;
    topic->members[topic->count] = session->slot;
    if (topic->hints != NULL)
        topic->hints[topic->count] = session->backlog.first;
    if (topic->drops != NULL)
        topic->drops[topic->count] = 0;
    topic->count++;
    return 0;
}

/* Fills a member's place with the last member. */
static void remove_member(struct urs_topics *topics, const struct urs_sessions *sessions, struct urs_topic *topic,
                          uint32_t place)
{
    URS_ASSERT(place < topic->count);
    uint32_t moved = topic->members[--topic->count];
    if (place < topic->count) {
        topic->members[place] = moved;
        if (topic->hints != NULL)
            topic->hints[place] = topic->hints[topic->count];
        if (topic->drops != NULL)
            topic->drops[place] = topic->drops[topic->count];
        entry_of(urs_session_at(sessions, moved)->memberships, topic->index + 1)->place = place;
    }
    if (topic->count == 0) {
        free(topic->members);
        free(topic->hints);
        free(topic->drops);
        topic->members = topic->hints = topic->drops = NULL;
        topic->room = 0;
    }
    note_unused(topics, topic);
}

int urs_topic_remove(struct urs_topics *topics, const struct urs_sessions *sessions, struct urs_topic *topic,
                     struct urs_session *session)
{
    uint32_t place = urs_topic_place(topic, session);
    if (place == UINT32_MAX)
        return 0;
    remove_member(topics, sessions, topic, place);
    remove_entry(session->memberships, entry_of(session->memberships, topic->index + 1));
    if (session->memberships->count == 0) {
        free(session->memberships);
        session->memberships = NULL;
    }
    return 1;
}

void urs_topics_leave(struct urs_topics *topics, const struct urs_sessions *sessions, struct urs_session *session)
{
    struct urs_memberships *table = session->memberships;
    if (table == NULL)
        return;
    for (uint32_t at = 0; at < table->room; at++) {
        if (table->entries[at].topic == 0)
            continue;
        struct urs_topic *topic = topics->places[table->entries[at].topic - 1].topic;
        URS_ASSERT(topic->members[table->entries[at].place] == session->slot);
        remove_member(topics, sessions, topic, table->entries[at].place);
    }
    free(table);
    session->memberships = NULL;
}

/* ---- messages for slow readers ------------------------------------------------------------------------------- */

void urs_topics_label(const struct urs_topics *topics, const struct urs_topic *topic,
                      struct urs_publication *publication)
{
    publication->topic = topic->index + 1;
    if (publication->kept.block != NULL && labels(topic))
        publication->kept.block->label = urs_topic_id(topics, topic);
}

/* Begins a new block for a log. While the last one has readers the next one is twice as large: so a log needs memory in
 * proportion to what its readers need. */
static int begin_log(struct urs_slice *log, struct urs_memory *memory, size_t bytes)
{
    size_t room = bytes;
    if (log->block != NULL && !urs_block_is_sole(log->block))
        room = urs_max(bytes, urs_min(2 * log->block->capacity, LOG_BYTES_MAX));
    struct urs_block *block = urs_block_new(memory, room);
    if (block == NULL && room > bytes)
        block = urs_block_new(memory, bytes);
    if (block == NULL)
        return urs_memory_error(memory, bytes);
    urs_block_seal(block);
    urs_slice_drop(log);
    *log = (struct urs_slice){.block = block, .start = URS_BLOCK_HEADROOM, .end = URS_BLOCK_HEADROOM};
    return 0;
}

static int keep_in_log(struct urs_slice *log, struct urs_memory *memory, struct urs_publication *publication)
{
    if (log->block == NULL || log->block->capacity - log->end < publication->bytes) {
        int error = begin_log(log, memory, publication->bytes);
        if (error != 0)
            return error;
    }
    struct urs_slice kept = {.block = log->block, .start = log->end, .end = log->end + publication->bytes};
    memcpy(urs_slice_data(&kept), publication->data, publication->bytes);
    urs_block_hold(log->block);
    log->end = kept.end;
    publication->kept = kept;
    return 0;
}

int urs_topics_keep(struct urs_topics *topics, struct urs_memory *memory, struct urs_publication *publication)
{
    struct urs_topic *topic = urs_topics_of(topics, publication);
    if (publication->kept.block != NULL)
        return 0;
    if (topic != NULL && labels(topic)) {
        struct urs_block *block = urs_block_new(memory, publication->bytes);
        if (block == NULL)
            return urs_memory_error(memory, publication->bytes);
        memcpy(urs_block_data(block), publication->data, publication->bytes);
        urs_block_seal(block);
        block->label = urs_topic_id(topics, topic);
        publication->kept = (struct urs_slice){
            .block = block, .start = URS_BLOCK_HEADROOM, .end = URS_BLOCK_HEADROOM + publication->bytes};
        return 0;
    }
    int error = keep_in_log(topic == NULL ? &topics->log : &topic->log, memory, publication);
    if (error == 0 && topic != NULL && !topic->logged) {
        topic->logged = true;
        topics->logs[topics->log_count++] = topic->index;
    }
    return error;
}

uint32_t urs_topic_waiting(const struct urs_topics *topics, struct urs_topic *topic, uint32_t place,
                           const struct urs_chain *backlog)
{
    uint32_t *hint = &topic->hints[place];
    uint64_t label = urs_topic_id(topics, topic);
    uint32_t at = *hint - backlog->first;
    URS_ASSERT(topic->hints != NULL && place < topic->count);
    /* The hint is older than the backlog's first slice, or its number was used again. */
    if (at > backlog->count)
        at = 0;
    for (; at < backlog->count; at++) {
        const struct urs_slice *slice = urs_chain_at(backlog, at);
        if (slice->block != NULL && slice->block->label == label && slice->start == URS_BLOCK_HEADROOM)
            break;
    }
    *hint = backlog->first + at;
    return at < backlog->count ? at : UINT32_MAX;
}

void urs_topic_note_drop(struct urs_topic *topic, uint32_t place)
{
    URS_ASSERT(place < topic->count);
    if (topic->drops == NULL)
        topic->drops = calloc(topic->room, sizeof *topic->drops);
    if (topic->drops != NULL)
        topic->drops[place]++;
}
