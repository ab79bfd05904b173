/* Topics: sets of sessions to which one message is published. Which session is a member of which topic, and the counters
 * of a topic; Python keeps the names. No I/O: publish.h sends. */
#ifndef URS_TOPICS_H
#define URS_TOPICS_H

#include "base.h"
#include "history.h"
#include "session.h"

/* cdef: begin */

enum urs_topics_limit { URS_TOPICS_MAX = 1 << 24 };  /* topics of one reactor at a time */

/* The action for a message that would exceed a member's backlog_bytes_max. */
enum urs_topic_on_full {
    URS_TOPIC_CLOSE = 0,                 /* close that member */
    URS_TOPIC_DROP_NEW = 1,              /* leave the new message out for that member */
    URS_TOPIC_DROP_OLD = 2,              /* leave out the oldest messages of the topic that wait for that member */
    URS_TOPIC_CONFLATE = 3               /* keep only the newest message of the topic that waits for that member */
};

/* Counters of a topic. At any time: addressed = sent + queued + dropped + conflated + closed. */
struct urs_topic_stats {
    uint64_t published;                  /* messages */
    uint64_t addressed;                  /* deliveries: the members of each message, added up */
    uint64_t sent;                       /* the member's socket takes it in the turn in which it is published */
    uint64_t queued;                     /* it waits, or waited, in the member's backlog */
    uint64_t dropped;                    /* left out because the backlog was full, or the member had begun a fragmented
                                            message */
    uint64_t conflated;                  /* a newer message took its place before its first byte was sent */
    uint64_t closed;                     /* the member was closed for it, or lost before its flush */
};

/* cdef: end */

struct urs_topic {
    uint32_t index;                      /* in the table */
    uint32_t count;
    uint32_t room;
    uint32_t *members;                   /* slots, in no order */
    uint32_t *hints;                     /* by place of the member, for URS_TOPIC_DROP_OLD and URS_TOPIC_CONFLATE: no slice
                                            of its backlog with a smaller number is a message of this topic that waits;
                                            NULL for the other policies */
    uint32_t *drops;                     /* by place of the member: messages that were dropped since Python was told;
                                            NULL until the first */
    uint8_t on_full;                     /* enum urs_topic_on_full */
    bool held;                           /* Python has it */
    bool logged;                         /* on the list of logs */
    bool unused;                         /* on the list of topics to look at in urs_topics_sweep */
    struct urs_slice log;                /* the block to which frames for slow readers are copied, up to `end`; it is
                                            sealed. No block: none yet */
    struct urs_history history;
    uint64_t position;                   /* grows by one per message, from a random number: a position of another topic, or
                                            of an earlier process, is found to be none of this one */
    struct urs_topic_stats stats;
};

struct urs_topic_place {
    struct urs_topic *topic;             /* NULL: free */
    uint32_t generation;                 /* odd while in use */
    uint32_t next_free;                  /* index + 1 */
};

/* The topics of one reactor. Zero-initialise it. */
struct urs_topics {
    struct urs_topic_place *places;
    uint32_t places_used;                /* places that were ever used */
    uint32_t places_room;
    uint32_t free_first;                 /* index + 1 */
    uint32_t count;                      /* topics */
    uint32_t *unused;                    /* indexes of topics to look at in urs_topics_sweep; room for places_room */
    uint32_t unused_count;
    uint32_t *logs;                      /* indexes of topics with a log; room for places_room */
    uint32_t log_count;
    uint32_t log_at;                     /* how many of them the sweeps have looked at, modulo 2^32 */
    struct urs_slice log;                /* the log of messages without a topic */
};

/* A session's memberships: a hash table with open addressing. */
struct urs_membership {
    uint32_t topic;                      /* index + 1 of the topic; 0: empty */
    uint32_t place;                      /* of the session among the topic's members */
};

struct urs_memberships {
    uint32_t count;
    uint32_t room;                       /* a power of two */
    struct urs_membership entries[];
};

static inline uint64_t urs_topic_id(const struct urs_topics *topics, const struct urs_topic *topic)
{
    return (uint64_t)topics->places[topic->index].generation << 32 | topic->index;
}

/* Returns the topic with that id, or NULL if it is gone. */
static inline struct urs_topic *urs_topics_find(const struct urs_topics *topics, uint64_t id)
{
    uint32_t index = (uint32_t)id;
    bool known = index < topics->places_used && topics->places[index].generation == (uint32_t)(id >> 32);
    return known ? topics->places[index].topic : NULL;
}

/* Makes a topic that Python holds. Returns NULL if there is no memory, or there are URS_TOPICS_MAX. */
struct urs_topic *urs_topics_new(struct urs_topics *topics, enum urs_topic_on_full on_full);

/* Notes that Python has let go of the topic. */
void urs_topics_release(struct urs_topics *topics, struct urs_topic *topic);

/* Returns whether urs_topics_sweep has something to do. */
static inline bool urs_topics_need_sweep(const struct urs_topics *topics)
{
    return topics->unused_count > 0 || topics->log_count > 0 || topics->log.block != NULL;
}

/* Drops what is too old from the histories of all topics, so that those that are not used any more can be freed. */
void urs_topics_expire(struct urs_topics *topics, uint64_t now_ms);

/* Frees the topics that are not held and have no members and no history, and a few of the logs that no backlog refers to. Call it when
 * no publication is left. */
void urs_topics_sweep(struct urs_topics *topics);

/* Returns the topic of a publication; NULL if it has none. */
static inline struct urs_topic *urs_topics_of(const struct urs_topics *topics,
                                              const struct urs_publication *publication)
{
    return publication->topic == 0 ? NULL : topics->places[publication->topic - 1].topic;
}

/* Notes of which topic a publication is. */
void urs_topics_label(const struct urs_topics *topics, const struct urs_topic *topic,
                      struct urs_publication *publication);

/* Keeps the frame of a publication beyond the turn: copies it into a block, once, and sets publication->kept. Under
 * URS_TOPIC_DROP_OLD and URS_TOPIC_CONFLATE each frame has a block of its own, labelled with the topic's id; all other
 * frames of a topic are written to its log one after another, so that a reader that needs many of them in order needs
 * one slice per block. Returns 0, URS_ERROR_MEMORY_BUDGET or -ENOMEM. */
int urs_topics_keep(struct urs_topics *topics, struct urs_memory *memory, struct urs_publication *publication);

/* Finds the oldest message of the topic that waits whole in the backlog of the member at that place. Returns its place in
 * the backlog, or UINT32_MAX. Only for topics with hints. */
uint32_t urs_topic_waiting(const struct urs_topics *topics, struct urs_topic *topic, uint32_t place,
                           const struct urs_chain *backlog);

/* Notes that the next slice of the member's backlog may be a message of the topic. */
static inline void urs_topic_note_next(struct urs_topic *topic, uint32_t place, const struct urs_chain *backlog)
{
    uint32_t next = backlog->first + backlog->count;
    if ((int32_t)(topic->hints[place] - next) > 0)
        topic->hints[place] = next;
}

/* Notes that a message was dropped for the member at that place. If there is no memory to count it, Python is not
 * told. */
void urs_topic_note_drop(struct urs_topic *topic, uint32_t place);

/* Frees everything. The sessions must have left. */
void urs_topics_close(struct urs_topics *topics);

/* Returns the session's place among the members, or UINT32_MAX if it is not a member. */
uint32_t urs_topic_place(const struct urs_topic *topic, const struct urs_session *session);

/* Adds a session. Returns 0, 1 if it is a member already, or -ENOMEM. */
int urs_topic_add(struct urs_topic *topic, struct urs_session *session);

/* Removes a session. Returns 1, or 0 if it is not a member. */
int urs_topic_remove(struct urs_topics *topics, const struct urs_sessions *sessions, struct urs_topic *topic,
                     struct urs_session *session);

/* Removes a session from all its topics and frees the table of its memberships. */
void urs_topics_leave(struct urs_topics *topics, const struct urs_sessions *sessions, struct urs_session *session);

#endif
