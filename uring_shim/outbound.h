/* The bytes that one connection sends in a turn: replies written in place in front of their payloads, and frames
 * written into an arena. Builds lists of segments in wire order; never sends. */
#ifndef URS_OUTBOUND_H
#define URS_OUTBOUND_H

#include "base.h"
#include "block.h"
#include "chain.h"
#include "engine.h"
#include "prepared.h"

/* cdef: begin */

enum urs_outbound_limit {
    URS_OUTBOUND_GAP_BYTES_MAX = 64,     /* replies to input this close together ... */
    URS_OUTBOUND_CLOSE_UP_BYTES_MAX = 4096, /* ... and not larger than this are moved together into one segment */
    URS_CLOSE_REASON_BYTES_MAX = 123     /* RFC 6455 5.5: 125 minus the 2 bytes of the code */
};

/* Contiguous bytes to send. They lie in a receive buffer or the arena (block NULL), or in a block to which the segment
 * holds a reference. */
struct urs_segment {
    uint8_t *data;
    size_t bytes;
    struct urs_block *block;
    uint32_t next;                       /* index + 1 of the next segment; 0 ends the list */
    uint32_t output : 1;                 /* the block was made for output: sealed, charged, and never shown to Python,
                                            so that several sessions may keep it */
    uint32_t published : 31;             /* index + 1 of the publication that the segment begins with; it contains this
                                            one and those that follow it in the table. 0: it is not published */
    uint8_t *until;                      /* for replies in place: the end of the input already consumed; the bytes
                                            between data + bytes and here are free. NULL if nothing may be moved: in the
                                            arena, and for a reply whose payload still has a reader */
};

/* A frame that many connections send. It lies in the arena, in a block of its own, or in a prepared message. */
struct urs_publication {
    uint8_t *data;
    uint32_t bytes;
    uint32_t topic;                      /* index + 1 of the topic; 0: it belongs to none */
    struct urs_slice kept;               /* the frame in a block, for backlogs; no block: nothing keeps it yet */
    struct urs_block *prepared;          /* the prepared message that it is, with a reference; NULL for none */
};

/* The segments and the arena that all connections of one thread share during a turn. Zero-initialise it. */
struct urs_outbox {
    struct urs_segment *segments;
    uint32_t count;
    uint32_t capacity;
    struct urs_publication *publications;/* of this turn, in order */
    uint32_t publication_count;
    uint32_t publication_room;
    struct urs_block *arena;             /* the block being filled */
    struct urs_chain arena_full;         /* the blocks of this turn that are full */
    size_t arena_bytes;                  /* written since the last reset */
    struct urs_memory arena_memory;      /* no budget: the reactor flushes before the arena grows large */
};

/* One connection's list. Zero-initialise it. */
struct urs_outbound {
    uint32_t first;                      /* index + 1 of the first segment; 0 for none */
    uint32_t last;
    size_t bytes;
};

/* Makes a reply with the payload of the item. Writes the header into the bytes in front of the payload (the freed place
 * of the masking key). Small replies that follow one another closely are moved together into one segment. Takes over
 * item->block, also on failure. Returns 0 or -ENOMEM. */
int urs_outbound_echo(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item,
                      uint8_t opcode, bool fin);

/* Like urs_outbound_echo, for a payload that still has a reader until the segment is cleared: the payload keeps its
 * place and its bytes, and only the bytes in front of it are overwritten. */
int urs_outbound_echo_unmoved(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item,
                              uint8_t opcode, bool fin);

/* Adds the frames that urs_engine_echo made, in place. Takes over item->block, also on failure. Returns 0 or
 * -ENOMEM. */
int urs_outbound_echo_run(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item);

/* Copies a frame into the arena. Returns 0 or -ENOMEM. */
int urs_outbound_frame(struct urs_outbox *outbox, struct urs_outbound *outbound, uint8_t opcode, bool fin,
                       const uint8_t *payload, size_t bytes);

/* Compresses a message, which urs_engine_compresses allows, into a frame in the arena. Returns true with 0 in *error, or
 * with -ENOMEM; false if the message must be sent uncompressed, and nothing was added. */
bool urs_outbound_compressed(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_engine *engine,
                             const struct urs_engine_rules *rules, struct urs_memory *memory, uint8_t opcode,
                             const uint8_t *payload, size_t bytes, int *error);

/* Copies bytes that are not a frame (an HTTP response) into the arena. Returns 0 or -ENOMEM. */
int urs_outbound_bytes(struct urs_outbox *outbox, struct urs_outbound *outbound, const uint8_t *data, size_t bytes);

/* Adds a prepared message without copying it: takes a reference. Returns 0 or -ENOMEM. */
int urs_outbound_prepared(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_block *prepared);

/* Adds a part of a sealed block without copying it. Takes over the slice's reference, also on failure. Returns 0 or
 * -ENOMEM. */
int urs_outbound_slice(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_slice slice);

/* Writes a frame that many connections are to send: into a block of its own that `memory` is charged for if that is not
 * NULL and has room, otherwise into the arena. Ensures that `segments` more segments can be added without an allocation.
 * Returns the publication, or NULL if there is no memory. The pointer is valid until the next publication. */
struct urs_publication *urs_outbox_publish(struct urs_outbox *outbox, struct urs_memory *memory, uint8_t opcode,
                                           const uint8_t *payload, size_t bytes, uint32_t segments);

/* Ensures that so many publications and segments can be added without an allocation. Returns 0 or -ENOMEM. */
int urs_outbox_reserve(struct urs_outbox *outbox, uint32_t publications, uint32_t segments);

/* Adds a publication of a frame that is kept already, with a reference of its own. urs_outbox_reserve was called for
 * it. */
const struct urs_publication *urs_outbox_republish(struct urs_outbox *outbox, struct urs_slice kept, uint32_t topic);

/* Like urs_outbox_publish, for a prepared message, which is not copied: takes a reference. */
struct urs_publication *urs_outbox_publish_prepared(struct urs_outbox *outbox, struct urs_block *prepared,
                                                    uint32_t segments);

/* Adds a publication to one connection's list. Cannot fail for as many connections as urs_outbox_publish was asked
 * for. */
void urs_outbound_publish(struct urs_outbox *outbox, struct urs_outbound *outbound,
                          const struct urs_publication *publication);

/* Adds an empty segment at `data`, which is to be lengthened by publications from that index on. Cannot fail, as
 * urs_outbound_publish. */
void urs_outbound_resume(struct urs_outbox *outbox, struct urs_outbound *outbound, uint8_t *data,
                         uint32_t publication);

/* Removes the last segment, which must be empty. */
void urs_outbound_remove_last(const struct urs_outbox *outbox, struct urs_outbound *outbound);

/* Adds a close frame. With `code` 0 or 1005 it carries no code; the reason is at most URS_CLOSE_REASON_BYTES_MAX bytes
 * of UTF-8. Returns 0 or -ENOMEM. */
int urs_outbound_close(struct urs_outbox *outbox, struct urs_outbound *outbound, unsigned code,
                       const uint8_t *reason, size_t bytes);

/* Adds the reply that the item requires: the pong for a ping, the close frame for a close frame or a violation, and
 * nothing for other items. Takes over item->block. Returns 0 or -ENOMEM. */
int urs_outbound_reply(struct urs_outbox *outbox, struct urs_outbound *outbound, struct urs_item *item);

/* Drops the references of one connection's segments and empties its list. */
void urs_outbound_clear(struct urs_outbox *outbox, struct urs_outbound *outbound);

/* Removes all segments and empties the arena, keeping its largest block; every list must be empty. */
void urs_outbox_reset(struct urs_outbox *outbox);

/* Frees everything. */
void urs_outbox_clear(struct urs_outbox *outbox);

/* cdef: end */

/* Returns true if the next `bytes` bytes of the arena will follow directly on `end`. */
static inline bool urs_outbox_follows(const struct urs_outbox *outbox, const uint8_t *end, size_t bytes)
{
    const struct urs_block *arena = outbox->arena;
    return arena != NULL && arena->bytes + arena->end == end && urs_block_room(arena) >= bytes;
}

#endif
