/* Chains: a ring of slices that grows by doubling and exists only while the chain has slices. */
#include "chain.h"

#include <errno.h>
#include <string.h>

enum {
    RING_SLICES_MIN = 4,
    BLOCK_BYTES_MIN = 4096,              /* a block for copied bytes has at least this room; the next one twice as
                                            much, ... */
    SPARE_SHARE = 4,                     /* ... but at most 1/4 of the chain, ... */
    SPARE_BYTES_MAX = 1 << 18,           /* ... and at most this, so that long chains are freed in pages */
    TAIL_SLICES = 8                      /* how many of the last slices are searched for a block of copied bytes */
};

/* ---- slices -------------------------------------------------------------------------------------------------- */

void urs_slice_drop(struct urs_slice *slice)
{
    urs_block_drop(slice->block);
    *slice = (struct urs_slice){0};
}

int urs_slice_append(struct urs_slice *slice, struct urs_memory *memory, const uint8_t *data, size_t bytes,
                     size_t expected)
{
    struct urs_block *block = slice->block;
    size_t have = urs_slice_bytes(slice);
    URS_ASSERT(bytes > 0 && (block == NULL || slice->end == block->end));
    if (bytes > UINT32_MAX - URS_BLOCK_HEADROOM - have || bytes > UINT32_MAX - (size_t)slice->end)
        return -ENOMEM;
    size_t from = block == NULL ? URS_BLOCK_HEADROOM : slice->start;
    int error = urs_block_reserve(memory, &slice->block, from, bytes, expected);
    if (error != 0)
        return error;
    if (slice->block != block) {
        slice->start = URS_BLOCK_HEADROOM;
        slice->end = (uint32_t)slice->block->end;
    }
    memcpy(slice->block->bytes + slice->end, data, bytes);
    slice->end += (uint32_t)bytes;
    slice->block->end = slice->end;
    URS_ASSERT(urs_slice_bytes(slice) == have + bytes && slice->end <= slice->block->capacity);
    return 0;
}

void urs_holding_add(struct urs_holding *holding, const struct urs_block *block, uint32_t references)
{
    if (block == NULL || block->memory == NULL)
        return;
    uint32_t all = urs_block_references(block);
    URS_ASSERT(references >= 1 && references <= all);
    if (references == all)
        holding->freed_bytes += block->capacity;
    holding->share_bytes += references == all ? block->capacity : block->capacity / all * references;
}

/* ---- the ring ------------------------------------------------------------------------------------------------ */

/* The ring's block is filled with room for a power of two of slices. */
static struct urs_slice *ring_slices(const struct urs_chain *chain)
{
    return (struct urs_slice *)(void *)urs_block_data(chain->ring);
}

static uint32_t ring_room(const struct urs_chain *chain)
{
    return chain->ring == NULL ? 0 : (uint32_t)(urs_block_bytes(chain->ring) / sizeof(struct urs_slice));
}

/* The number of a slice says where it lies: it keeps its number when the ring grows, but not its place in memory. */
static struct urs_slice *slice_numbered(const struct urs_chain *chain, uint32_t number)
{
    return &ring_slices(chain)[number & (ring_room(chain) - 1)];
}

struct urs_slice *urs_chain_at(const struct urs_chain *chain, uint32_t place)
{
    URS_ASSERT(place < chain->count);
    return slice_numbered(chain, chain->first + place);
}

static int grow(struct urs_chain *chain, struct urs_memory *memory)
{
    uint32_t room = (uint32_t)urs_max(RING_SLICES_MIN, 2 * (size_t)ring_room(chain));
    struct urs_chain grown = *chain;
    grown.ring = urs_block_new(memory, room * sizeof(struct urs_slice));
    if (grown.ring == NULL)
        return urs_memory_error(memory, room * sizeof(struct urs_slice));
    grown.ring->end += room * sizeof(struct urs_slice);
    for (uint32_t place = 0; place < chain->count; place++)
        *urs_chain_at(&grown, place) = *urs_chain_at(chain, place);
    urs_block_drop(chain->ring);
    chain->ring = grown.ring;
    URS_ASSERT(ring_room(chain) == room);
    return 0;
}

int urs_chain_push(struct urs_chain *chain, struct urs_memory *memory, struct urs_slice slice)
{
    URS_ASSERT(slice.block != NULL && slice.start < slice.end && slice.end <= slice.block->capacity);
    struct urs_slice *last = chain->count == 0 ? NULL : urs_chain_at(chain, chain->count - 1);
    if (last != NULL && last->block == slice.block && last->end == slice.start) {
        last->end = slice.end;
        chain->bytes += urs_slice_bytes(&slice);
        urs_block_drop(slice.block);  /* the last slice holds one reference already */
        return 0;
    }
    if (chain->count == ring_room(chain)) {
        int error = grow(chain, memory);
        if (error != 0)
            return error;
    }
    *slice_numbered(chain, chain->first + chain->count) = slice;
    chain->count++;
    chain->bytes += urs_slice_bytes(&slice);
    return 0;
}

/* ---- bytes --------------------------------------------------------------------------------------------------- */

/* Returns the block to which this chain copied bytes last, or NULL. A block that several chains share is sealed, so it
 * has no room. */
static struct urs_block *tail_block(const struct urs_chain *chain)
{
    uint32_t places = (uint32_t)urs_min(chain->count, TAIL_SLICES);
    for (uint32_t back = 1; back <= places; back++) {
        const struct urs_slice *slice = urs_chain_at(chain, chain->count - back);
        if (slice->block != NULL && slice->end == slice->block->end && (urs_block_room(slice->block) > 0 || urs_block_is_sole(slice->block)))
            return slice->block;
    }
    return NULL;
}

/* Returns a new block for `bytes` bytes and spare room in proportion to what was copied before: bytes that the chain
 * shares with others must not make it reserve memory of its own. */
static struct urs_block *new_tail(const struct urs_chain *chain, struct urs_memory *memory,
                                  const struct urs_block *tail, size_t bytes)
{
    size_t spare = urs_min((chain->bytes + bytes) / SPARE_SHARE, SPARE_BYTES_MAX);
    spare = tail == NULL ? 0 : urs_min(spare, 2 * tail->capacity);
    struct urs_block *block = urs_block_new(memory, urs_max(bytes, urs_max(spare, BLOCK_BYTES_MIN)));
    return block != NULL ? block : urs_block_new(memory, bytes);
}

/* Adds as many of the bytes as the block has room for. Takes over the reference to the block. Returns their number, or
 * an error. */
static int64_t fill(struct urs_chain *chain, struct urs_memory *memory, struct urs_block *block, const uint8_t *data,
                    size_t bytes)
{
    size_t part = urs_min(bytes, urs_block_room(block));
    struct urs_slice slice = {.block = block, .start = (uint32_t)block->end, .end = (uint32_t)(block->end + part)};
    URS_ASSERT(part > 0 && block->end + part <= UINT32_MAX);
    memcpy(block->bytes + block->end, data, part);
    int error = urs_chain_push(chain, memory, slice);
    if (error != 0) {
        urs_block_drop(block);
        return error;
    }
    block->end = slice.end;
    return (int64_t)part;
}

int urs_chain_write(struct urs_chain *chain, struct urs_memory *memory, const uint8_t *data, size_t bytes)
{
    struct urs_block *tail = tail_block(chain);
    if (tail != NULL && urs_block_room(tail) > 0) {
        urs_block_hold(tail);
        int64_t part = fill(chain, memory, tail, data, bytes);
        if (part < 0)
            return (int)part;
        data += part;
        bytes -= (size_t)part;
    }
    if (bytes == 0)
        return 0;
    struct urs_block *block = new_tail(chain, memory, tail, bytes);
    if (block == NULL)
        return urs_memory_error(memory, bytes);
    int64_t part = fill(chain, memory, block, data, bytes);
    URS_ASSERT(part < 0 || part == (int64_t)bytes);
    return part < 0 ? (int)part : 0;
}

/* Removes empty slices at both ends, and the ring of an empty chain. */
static void trim(struct urs_chain *chain)
{
    while (chain->count > 0 && urs_chain_at(chain, 0)->block == NULL) {
        chain->first++;
        chain->count--;
    }
    while (chain->count > 0 && urs_chain_at(chain, chain->count - 1)->block == NULL)
        chain->count--;
    URS_ASSERT((chain->count == 0) == (chain->bytes == 0));
    if (chain->count == 0) {
        urs_block_drop(chain->ring);
        chain->ring = NULL;
    }
}

void urs_chain_consume(struct urs_chain *chain, size_t bytes)
{
    URS_ASSERT(bytes <= chain->bytes);
    while (bytes > 0) {
        struct urs_slice *slice = urs_chain_at(chain, 0);
        size_t part = urs_min(bytes, urs_slice_bytes(slice));
        slice->start += (uint32_t)part;
        bytes -= part;
        chain->bytes -= part;
        if (slice->start < slice->end)
            return;
        urs_slice_drop(slice);
        chain->first++;
        chain->count--;
        trim(chain);
    }
}

void urs_chain_drop(struct urs_chain *chain, uint32_t place)
{
    struct urs_slice *slice = urs_chain_at(chain, place);
    URS_ASSERT(slice->block != NULL && chain->bytes >= urs_slice_bytes(slice));
    chain->bytes -= urs_slice_bytes(slice);
    urs_slice_drop(slice);
    trim(chain);
}

bool urs_chain_is_full(const struct urs_chain *chain) { return chain->count == ring_room(chain); }

void urs_chain_compact(struct urs_chain *chain, uint32_t *number)
{
    uint32_t empty = 0;
    for (uint32_t place = 0; place < chain->count; place++)
        empty += urs_chain_at(chain, place)->block == NULL;
    if (4 * empty < ring_room(chain) || empty == 0)
        return;
    /* From the end on, so that the end keeps its place. */
    uint32_t tracked = *number - chain->first;
    uint32_t to = chain->count;
    for (uint32_t from = chain->count; from-- > 0;) {
        const struct urs_slice slice = *urs_chain_at(chain, from);
        if (slice.block == NULL)
            continue;
        *urs_chain_at(chain, --to) = slice;
        if (from == tracked)
            *number = chain->first + to;
    }
    URS_ASSERT(to == empty);
    chain->first += empty;
    chain->count -= empty;
}

void urs_chain_measure(const struct urs_chain *chain, struct urs_holding *holding)
{
    uint32_t references = 0;
    for (uint32_t place = 0; place < chain->count; place++) {
        const struct urs_block *block = urs_chain_at(chain, place)->block;
        references++;
        if (block == NULL) {
            URS_ASSERT(references == 1);
            references = 0;
            continue;
        }
        /* Slices of one block usually follow one another, so they are counted together. */
        if (place + 1 == chain->count || urs_chain_at(chain, place + 1)->block != block) {
            urs_holding_add(holding, block, references);
            references = 0;
        }
    }
    urs_holding_add(holding, chain->ring, 1);
}
