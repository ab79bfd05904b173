/* Outbound: segments, the arena, and replies in place. */
#include "outbound.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

enum { ARENA_BYTES_MIN = 127 * 1024, ARENA_KEPT_BYTES_MAX = 4 << 20, SEGMENTS_MIN = 256, PUBLICATIONS_MIN = 16 };

/* Ensures room for `more` segments. */
static int reserve_segments(struct urs_outbox *outbox, size_t more)
{
    if (URS_LIKELY(outbox->capacity - outbox->count >= more))
        return 0;
    size_t capacity = urs_max(urs_max(SEGMENTS_MIN, 2 * (size_t)outbox->capacity), outbox->count + more);
    if (capacity > UINT32_MAX / 2)
        return -ENOMEM;
    struct urs_segment *segments = realloc(outbox->segments, capacity * sizeof *segments);
    if (segments == NULL)
        return -ENOMEM;
    outbox->segments = segments;
    outbox->capacity = (uint32_t)capacity;
    return 0;
}

/* Adds a segment at the end of the list. */
static int add_segment(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_segment segment)
{
    if (reserve_segments(outbox, 1) != 0) {
        urs_block_drop(segment.block);
        return -ENOMEM;
    }
    URS_ASSERT((outbound->first == 0) == (outbound->last == 0) && outbound->last <= outbox->count);
    uint32_t index = outbox->count++;
    outbox->segments[index] = segment;
    if (outbound->last == 0)
        outbound->first = index + 1;
    else
        outbox->segments[outbound->last - 1].next = index + 1;
    outbound->last = index + 1;
    outbound->bytes += segment.bytes;
    return 0;
}

/* Returns true if the segment may be joined to the last one: both are published or neither is, and it follows directly, or both are replies in place and only
 * a little input lies between them, so that moving this one up is cheaper than a segment of its own. In the arena a gap
 * is the frame of another connection. */
static bool joins(const struct urs_segment *last, const struct urs_segment *segment)
{
    if (last->block != segment->block || (last->published == 0) != (segment->published == 0))
        return false;
    if (segment->data == last->data + last->bytes)
        return true;
    return last->until != NULL && segment->until != NULL && segment->data >= last->until
        && segment->data - last->until <= URS_OUTBOUND_GAP_BYTES_MAX
        && segment->bytes <= URS_OUTBOUND_CLOSE_UP_BYTES_MAX;
}

static int append(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_segment segment)
{
    if (outbound->last != 0) {
        struct urs_segment *last = &outbox->segments[outbound->last - 1];
        if (joins(last, &segment)) {
            uint8_t *end = last->data + last->bytes;
            if (segment.data != end)
                memmove(end, segment.data, segment.bytes);
            last->until = segment.until;
            last->bytes += segment.bytes;
            outbound->bytes += segment.bytes;
            urs_block_drop(segment.block);  /* the last segment holds one reference already */
            return 0;
        }
    }
    return add_segment(outbox, outbound, segment);
}

/* Writes the header in front of the item's payload and returns both as a segment. The segment takes over
 * item->block. */
static struct urs_segment echo_segment(struct urs_item *item, uint8_t opcode, bool fin)
{
    size_t header_bytes = urs_frame_answer_bytes(item->bytes);
    uint8_t *start = item->payload - header_bytes;
    urs_frame_write(start, opcode, fin, item->bytes);
    struct urs_block *block = item->block;
    item->block = NULL;
    return (struct urs_segment){.data = start, .bytes = header_bytes + item->bytes, .block = block};
}

int urs_outbound_echo(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item,
                      uint8_t opcode, bool fin)
{
    struct urs_segment segment = echo_segment(item, opcode, fin);
    segment.until = item->payload + item->bytes;
    return append(outbox, outbound, segment);
}

int urs_outbound_echo_unmoved(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item,
                              uint8_t opcode, bool fin)
{
    return append(outbox, outbound, echo_segment(item, opcode, fin));
}

int urs_outbound_echo_run(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item)
{
    /* Each reply is four bytes shorter than its message, because it has no masking key. The four bytes of the first
     * message lie in front of the replies; the bytes of all other keys lie after the replies. */
    size_t keys_behind = 4 * (size_t)(item->count - 1);
    struct urs_block *block = item->block;
    item->block = NULL;
    return append(outbox, outbound, (struct urs_segment){.data = item->payload, .bytes = item->bytes, .block = block,
                                                         .until = item->payload + item->bytes + keys_behind});
}

/* Keeps the arena until the end of the turn: segments refer to it. */
static int keep_full_arena(struct urs_outbox *outbox)
{
    struct urs_block *arena = outbox->arena;
    if (arena == NULL || urs_block_bytes(arena) == 0) {
        urs_block_drop(arena);
        return 0;
    }
    struct urs_slice slice = {.block = arena, .start = URS_BLOCK_HEADROOM, .end = (uint32_t)arena->end};
    return urs_chain_push(&outbox->arena_full, &outbox->arena_memory, slice);
}

/* Returns room for `bytes` contiguous bytes in the arena, or NULL. */
static uint8_t *arena_take(struct urs_outbox *outbox, size_t bytes)
{
    struct urs_block *arena = outbox->arena;
    if (arena == NULL || urs_block_room(arena) < bytes) {
        arena = urs_block_new(&outbox->arena_memory, urs_max(bytes, ARENA_BYTES_MIN - URS_BLOCK_HEADROOM));
        if (arena == NULL || keep_full_arena(outbox) != 0) {
            urs_block_drop(arena);
            return NULL;
        }
        outbox->arena = arena;
    }
    URS_ASSERT(urs_block_room(arena) >= bytes);
    uint8_t *target = arena->bytes + arena->end;
    arena->end += bytes;
    outbox->arena_bytes += bytes;
    return target;
}

int urs_outbound_bytes(struct urs_outbox *outbox, struct urs_outbound *outbound, const uint8_t *data, size_t bytes)
{
    uint8_t *target = arena_take(outbox, bytes);
    if (target == NULL)
        return -ENOMEM;
    memcpy(target, data, bytes);
    return append(outbox, outbound, (struct urs_segment){.data = target, .bytes = bytes});
}

int urs_outbound_frame(struct urs_outbox *outbox, struct urs_outbound *outbound, uint8_t opcode, bool fin,
                       const uint8_t *payload, size_t bytes)
{
    size_t header_bytes = urs_frame_answer_bytes(bytes);
    uint8_t *target = arena_take(outbox, header_bytes + bytes);
    if (target == NULL)
        return -ENOMEM;
    urs_frame_write(target, opcode, fin, bytes);
    if (bytes > 0)
        memcpy(target + header_bytes, payload, bytes);
    return append(outbox, outbound, (struct urs_segment){.data = target, .bytes = header_bytes + bytes});
}

/* Gives the end of the room that was taken last back to the arena. */
static void arena_give_back(struct urs_outbox *outbox, size_t bytes)
{
    URS_ASSERT(urs_block_bytes(outbox->arena) >= bytes && outbox->arena_bytes >= bytes);
    outbox->arena->end -= bytes;
    outbox->arena_bytes -= bytes;
}

bool urs_outbound_compressed(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_engine *engine,
                             const struct urs_engine_rules *rules, struct urs_memory *memory, uint8_t opcode,
                             const uint8_t *payload, size_t bytes, int *error)
{
    URS_ASSERT(urs_engine_compresses(engine, rules, bytes));
    /* The room must be there before the compressor sees a byte, because its output must be sent. */
    size_t room = URS_FRAME_ANSWER_BYTES_MAX + urs_deflate_room(bytes);
    uint8_t *target = arena_take(outbox, room);
    *error = target == NULL ? -ENOMEM : 0;
    if (target == NULL)
        return true;
    uint8_t *data = target + URS_FRAME_ANSWER_BYTES_MAX;
    size_t written = urs_deflate_compress(&engine->deflate, engine->deflate_terms, &rules->deflate, memory, payload,
                                          bytes, data);
    if (written == 0) {
        arena_give_back(outbox, room);
        return false;
    }
    size_t header_bytes = urs_frame_answer_bytes(written);
    arena_give_back(outbox, room - URS_FRAME_ANSWER_BYTES_MAX - written);
    urs_frame_write(data - header_bytes, opcode | URS_FRAME_RSV1, true, written);
    *error = append(outbox, outbound, (struct urs_segment){.data = data - header_bytes, .bytes = header_bytes + written});
    if (*error != 0)
        urs_deflate_forget(engine->deflate);
    return true;
}

int urs_outbound_slice(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_slice slice)
{
    URS_ASSERT(urs_block_room(slice.block) == 0 && slice.block->memory != NULL && slice.start < slice.end);
    return append(outbox, outbound, (struct urs_segment){.data = urs_slice_data(&slice), .bytes = urs_slice_bytes(&slice),
                                                         .block = slice.block, .output = true});
}

int urs_outbound_prepared(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_block *prepared)
{
    URS_ASSERT(prepared->memory == NULL);
    urs_block_hold(prepared);
    return append(outbox, outbound, (struct urs_segment){.data = urs_block_data(prepared),
                                                         .bytes = urs_block_bytes(prepared), .block = prepared});
}

void urs_outbound_resume(struct urs_outbox *outbox, struct urs_outbound *outbound, uint8_t *data,
                         uint32_t publication)
{
    URS_ASSERT(outbox->count < outbox->capacity);
    add_segment(outbox, outbound, (struct urs_segment){.data = data, .published = (publication + 1) & INT32_MAX});
}

void urs_outbound_remove_last(const struct urs_outbox *outbox, struct urs_outbound *outbound)
{
    uint32_t previous = 0;
    for (uint32_t index = outbound->first; index != outbound->last; index = outbox->segments[index - 1].next)
        previous = index;
    URS_ASSERT(outbox->segments[outbound->last - 1].bytes == 0);
    outbound->last = previous;
    if (previous == 0)
        outbound->first = 0;
    else
        outbox->segments[previous - 1].next = 0;
}

int urs_outbox_reserve(struct urs_outbox *outbox, uint32_t publications, uint32_t segments)
{
    if (reserve_segments(outbox, segments) != 0)
        return -ENOMEM;
    if (outbox->publication_room - outbox->publication_count >= publications)
        return 0;
    size_t room = urs_max(urs_max(PUBLICATIONS_MIN, 2 * (size_t)outbox->publication_room),
                          outbox->publication_count + (size_t)publications);
    if (room > INT32_MAX)
        return -ENOMEM;
    struct urs_publication *grown = realloc(outbox->publications, room * sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    outbox->publications = grown;
    outbox->publication_room = (uint32_t)room;
    return 0;
}

const struct urs_publication *urs_outbox_republish(struct urs_outbox *outbox, struct urs_slice kept, uint32_t topic)
{
    URS_ASSERT(outbox->publication_count < outbox->publication_room);
    struct urs_publication *publication = &outbox->publications[outbox->publication_count++];
    urs_block_hold(kept.block);
    *publication = (struct urs_publication){
        .data = urs_slice_data(&kept), .bytes = (uint32_t)urs_slice_bytes(&kept), .topic = topic, .kept = kept};
    return publication;
}

/* Returns a sealed block for a frame as the only slice of it, or a slice without a block. */
static struct urs_slice new_frame_block(struct urs_memory *memory, size_t bytes)
{
    struct urs_block *block = memory == NULL ? NULL : urs_block_new(memory, bytes);
    if (block == NULL)
        return (struct urs_slice){0};
    urs_block_seal(block);
    return (struct urs_slice){
        .block = block, .start = URS_BLOCK_HEADROOM, .end = (uint32_t)(URS_BLOCK_HEADROOM + bytes)};
}

struct urs_publication *urs_outbox_publish(struct urs_outbox *outbox, struct urs_memory *memory, uint8_t opcode,
                                           const uint8_t *payload, size_t bytes, uint32_t segments)
{
    size_t header_bytes = urs_frame_answer_bytes(bytes);
    URS_ASSERT(bytes <= INT32_MAX);
    if (urs_outbox_reserve(outbox, 1, segments) != 0)
        return NULL;
    struct urs_slice kept = new_frame_block(memory, header_bytes + bytes);
    uint8_t *target = kept.block != NULL ? urs_slice_data(&kept) : arena_take(outbox, header_bytes + bytes);
    if (target == NULL)
        return NULL;
    urs_frame_write(target, opcode, true, bytes);
    if (bytes > 0)
        memcpy(target + header_bytes, payload, bytes);
    struct urs_publication *publication = &outbox->publications[outbox->publication_count++];
    *publication = (struct urs_publication){
        .data = target, .bytes = (uint32_t)(header_bytes + bytes), .kept = kept};
    return publication;
}

struct urs_publication *urs_outbox_publish_prepared(struct urs_outbox *outbox, struct urs_block *prepared,
                                                    uint32_t segments)
{
    URS_ASSERT(prepared->memory == NULL);
    if (urs_outbox_reserve(outbox, 1, segments) != 0)
        return NULL;
    urs_block_hold(prepared);
    struct urs_publication *publication = &outbox->publications[outbox->publication_count++];
    *publication = (struct urs_publication){
        .data = urs_block_data(prepared), .bytes = (uint32_t)urs_block_bytes(prepared), .prepared = prepared};
    return publication;
}

void urs_outbound_publish(struct urs_outbox *outbox, struct urs_outbound *outbound,
                          const struct urs_publication *publication)
{
    uint32_t number = (uint32_t)(publication - outbox->publications) + 1;
    URS_ASSERT(outbox->count < outbox->capacity && number <= outbox->publication_count);
    int error = append(outbox, outbound, (struct urs_segment){.data = publication->data, .bytes = publication->bytes,
                                                              .published = number & INT32_MAX});
    URS_ASSERT(error == 0);
    (void)error;
}

int urs_outbound_close(struct urs_outbox *outbox, struct urs_outbound *outbound, unsigned code,
                       const uint8_t *reason, size_t bytes)
{
    uint8_t payload[2 + URS_CLOSE_REASON_BYTES_MAX];
    if (code == 0 || code == URS_CLOSE_NO_STATUS)
        return urs_outbound_frame(outbox, outbound, URS_OPCODE_CLOSE, true, NULL, 0);
    bytes = urs_min(bytes, URS_CLOSE_REASON_BYTES_MAX);
    payload[0] = (uint8_t)(code >> 8);
    payload[1] = (uint8_t)code;
    if (bytes > 0)
        memcpy(payload + 2, reason, bytes);
    return urs_outbound_frame(outbox, outbound, URS_OPCODE_CLOSE, true, payload, 2 + bytes);
}

int urs_outbound_reply(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item)
{
    if (item->kind == URS_ITEM_PING)
        return urs_outbound_echo(outbox, outbound, item, URS_OPCODE_PONG, true);
    urs_block_drop(item->block);  /* also for a violation: then the block is the input in which it was found */
    item->block = NULL;
    switch (item->kind) {
    case URS_ITEM_CLOSE:
        /* The close code of the peer is sent back without its reason, as RFC 6455 5.5.1 suggests. */
        return urs_outbound_close(outbox, outbound, item->close_code, NULL, 0);
    case URS_ITEM_FAILED: {
        const char *text = urs_engine_error_text(item->error);
        return urs_outbound_close(outbox, outbound, item->close_code, (const uint8_t *)text, strlen(text));
    }
    default:
        return 0;
    }
}

void urs_outbound_clear(struct urs_outbox *outbox, struct urs_outbound *outbound)
{
    for (uint32_t index = outbound->first; index != 0; index = outbox->segments[index - 1].next) {
        urs_block_drop(outbox->segments[index - 1].block);
        outbox->segments[index - 1].block = NULL;
    }
    *outbound = (struct urs_outbound){0};
}

void urs_outbox_reset(struct urs_outbox *outbox)
{
    struct urs_block *arena = outbox->arena;
    for (uint32_t index = 0; index < outbox->publication_count; index++) {
        urs_slice_drop(&outbox->publications[index].kept);
        urs_block_drop(outbox->publications[index].prepared);
    }
    outbox->publication_count = 0;
    outbox->count = 0;
    outbox->arena_bytes = 0;
    if (arena == NULL)
        return;
    urs_chain_consume(&outbox->arena_full, outbox->arena_full.bytes);
    if (arena->capacity <= ARENA_KEPT_BYTES_MAX) {
        arena->end = URS_BLOCK_HEADROOM;
        return;
    }
    /* The arena grew for one large message: so much memory is not kept. */
    urs_block_drop(arena);
    outbox->arena = NULL;
}

void urs_outbox_clear(struct urs_outbox *outbox)
{
    urs_outbox_reset(outbox);
    urs_block_drop(outbox->arena);
    urs_memory_clear(&outbox->arena_memory);
    free(outbox->segments);
    free(outbox->publications);
    *outbox = (struct urs_outbox){0};
}
