/* Topics: dense arrays of members, and per session a small hash table of its memberships. */
#include "topics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES_MIN = 16, MEMBERS_MIN = 4, MEMBERSHIPS_MIN = 4 };

/* ---- the table of topics ------------------------------------------------------------------------------------- */

static int grow_places(struct urs_topics *topics)
{
    uint32_t room = (uint32_t)urs_max(PLACES_MIN, 2 * (size_t)topics->places_room);
    uint32_t *unused = realloc(topics->unused, room * sizeof *unused);
    if (unused == NULL)
        return -ENOMEM;
    topics->unused = unused;
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
    free(topic->members);
    free(topic);
}

/* Puts a topic on the list for the next sweep if nothing uses it any more. It is not freed here, because a frame of this
 * turn may still refer to it. */
static void note_unused(struct urs_topics *topics, struct urs_topic *topic)
{
    if (topic->held || topic->count > 0 || topic->unused)
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

void urs_topics_sweep(struct urs_topics *topics)
{
    for (uint32_t number = 0; number < topics->unused_count; number++) {
        struct urs_topic *topic = topics->places[topics->unused[number]].topic;
        URS_ASSERT(topic != NULL && topic->unused);
        topic->unused = false;
        if (!topic->held && topic->count == 0)
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
    free(topics->unused);
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

static int reserve_member(struct urs_topic *topic)
{
    if (topic->count < topic->room)
        return 0;
    uint32_t room = (uint32_t)urs_max(MEMBERS_MIN, topic->room + (size_t)topic->room / 2);
    uint32_t *members = realloc(topic->members, room * sizeof *members);
    if (members == NULL)
        return -ENOMEM;
    topic->members = members;
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
    topic->members[topic->count++] = session->slot;
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
        entry_of(urs_session_at(sessions, moved)->memberships, topic->index + 1)->place = place;
    }
    if (topic->count == 0) {
        free(topic->members);
        topic->members = NULL;
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
