/* The run. A member that is skipped gets an empty segment at the place where its part of the run goes on. */
#include "run.h"

#include "frame.h"
#include "work.h"

static const struct urs_topic *topic_of(const struct urs_topic_run *run, const struct urs_topics *topics)
{
    return topics->places[run->topic - 1].topic;
}

#ifdef URS_ASSERTIONS
/* The gate asserts that it is not asked about a member of an open run. */
static void mark(struct urs_reactor *reactor, bool in_run)
{
    const struct urs_topic *topic = topic_of(&reactor->run, &reactor->topics);
    for (uint32_t place = 0; place < topic->count; place++)
        urs_core_session(reactor, topic->members[place])->in_run = in_run;
}
#else
static void mark(struct urs_reactor *reactor, bool in_run)
{
    (void)reactor;
    (void)in_run;
}
#endif

void urs_run_begin(struct urs_reactor *reactor, const struct urs_topic *topic,
                   const struct urs_publication *publication, uint32_t skipped, size_t room)
{
    URS_ASSERT(reactor->run.topic == 0 && publication->kept.block == NULL);
    reactor->run = (struct urs_topic_run){
        .topic = topic->index + 1, .end = publication->data + publication->bytes, .room = room, .skipped = skipped};
    mark(reactor, true);
}

bool urs_run_takes(const struct urs_reactor *reactor, const struct urs_topic *topic, size_t bytes)
{
    const struct urs_topic_run *run = &reactor->run;
    return run->topic == topic->index + 1 && bytes <= run->room
        && urs_outbox_follows(&reactor->outbox, run->end, urs_frame_answer_bytes(bytes) + bytes);
}

/* Lengthens the member's last segment up to the end of the run. An empty one that stays empty is removed. */
static void settle(struct urs_reactor *reactor, struct urs_session *session)
{
    struct urs_outbox *outbox = &reactor->outbox;
    struct urs_outbound *outbound = &session->outbound;
    struct urs_segment *last = &outbox->segments[outbound->last - 1];
    URS_ASSERT(outbound->last != 0 && last->published != 0 && last->data + last->bytes <= reactor->run.end);
    size_t more = (size_t)(reactor->run.end - last->data) - last->bytes;
    last->bytes += more;
    outbound->bytes += more;
    if (last->bytes == 0)
        urs_outbound_remove_last(outbox, outbound);
}

/* Lets the member's part of the run go on at the end of the run, with the publication of that index. */
static void resume(struct urs_reactor *reactor, uint32_t slot, uint32_t publication)
{
    struct urs_session *session = urs_core_session(reactor, slot);
    urs_outbound_resume(&reactor->outbox, &session->outbound, reactor->run.end, publication);
    urs_work_fanout(reactor, session);
}

void urs_run_extend(struct urs_reactor *reactor, const struct urs_publication *publication, uint32_t skipped)
{
    struct urs_topic_run *run = &reactor->run;
    uint32_t index = (uint32_t)(publication - reactor->outbox.publications);
    URS_ASSERT(publication->data == run->end && index + 1 == reactor->outbox.publication_count);
    if (!run->extended && run->skipped != UINT32_MAX)
        resume(reactor, run->skipped, index);
    run->extended = true;
    if (skipped != UINT32_MAX)
        settle(reactor, urs_core_session(reactor, skipped));
    run->end += publication->bytes;
    run->room -= urs_min(run->room, publication->bytes);
    if (skipped != UINT32_MAX)
        resume(reactor, skipped, index + 1);
}

void urs_run_seal_open(struct urs_reactor *reactor)
{
    enum { AHEAD = 8 };
    const struct urs_topic *topic = topic_of(&reactor->run, &reactor->topics);
    mark(reactor, false);
    for (uint32_t place = 0; place < topic->count && reactor->run.extended; place++) {
        if (place + AHEAD < topic->count)
            __builtin_prefetch(&urs_core_session(reactor, topic->members[place + AHEAD])->outbound);
        settle(reactor, urs_core_session(reactor, topic->members[place]));
    }
    reactor->run.topic = 0;
}
