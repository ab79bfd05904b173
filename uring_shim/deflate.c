/* Raw DEFLATE by zlib. Without context takeover every message goes through a stream of its thread; with it, through one
 * of its connection. */
#define _GNU_SOURCE
#include "deflate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "fault.h"

enum {
    SCRATCH_BYTES = 64 * 1024,           /* most messages inflate here, and then get a block of their exact size */
    COMPRESSORS = 8,                     /* of a thread: one per level and window in use */
    ALLOCATION_HEADER = 16,              /* keeps what zlib allocates aligned as malloc does */
    CHUNK_BYTES_MAX = 1 << 30,           /* zlib counts in 32 bits */
    WINDOW_BITS_MAX = 15,
    WINDOW_BITS_MIN = 9                  /* zlib cannot compress with 8; to inflate with more is always right */
};

/* The bytes that a sender strips from each message, RFC 7692 7.2.1: the lengths of an empty stored block. */
static const uint8_t tail[4] = {0x00, 0x00, 0xff, 0xff};

struct urs_deflate {
    struct urs_memory *memory;
    size_t bytes;                        /* charged to it */
    bool compresses;
    bool inflates;
    z_stream compressor;
    z_stream inflater;
};

struct compressor {
    z_stream stream;
    int bits;                            /* 0: not in use */
    int level;
    int memory_level;
    uint64_t used_at;
};

/* The streams of a thread. */
struct shared {
    struct compressor compressors[COMPRESSORS];
    uint64_t uses;
    bool inflates;
    z_stream inflater;
    uint8_t scratch[SCRATCH_BYTES];
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_failed;

const char *urs_deflate_library(void) { return "zlib " ZLIB_VERSION; }

/* ---- memory -------------------------------------------------------------------------------------------------- */

static void free_shared(void *pointer)
{
    struct shared *shared = pointer;
    for (size_t index = 0; index < COMPRESSORS; index++)
        if (shared->compressors[index].bits != 0)
            deflateEnd(&shared->compressors[index].stream);
    if (shared->inflates)
        inflateEnd(&shared->inflater);
    free(shared);
}

static void make_key(void) { key_failed = pthread_key_create(&key, free_shared) != 0; }

/* Returns the streams of the calling thread, or NULL without memory. */
static struct shared *of_thread(void)
{
    pthread_once(&once, make_key);
    if (key_failed)
        return NULL;
    struct shared *shared = pthread_getspecific(key);
    if (shared != NULL || urs_fault(URS_FAULT_DEFLATE) != 0)
        return shared;
    shared = calloc(1, sizeof *shared);
    if (shared != NULL && pthread_setspecific(key, shared) != 0) {
        free(shared);
        return NULL;
    }
    return shared;
}

/* Allocates for zlib, at the cost of the budget. */
static voidpf take(voidpf opaque, uInt items, uInt size)
{
    struct urs_deflate *own = opaque;
    size_t bytes = ALLOCATION_HEADER + (size_t)items * size;
    if (urs_fault(URS_FAULT_DEFLATE) != 0 || urs_memory_charge(own->memory, bytes) != 0)
        return NULL;
    size_t *allocation = malloc(bytes);
    if (allocation == NULL) {
        urs_memory_refund(own->memory, bytes);
        return NULL;
    }
    *allocation = bytes;
    own->bytes += bytes;
    return (uint8_t *)allocation + ALLOCATION_HEADER;
}

static void give_back(voidpf opaque, voidpf pointer)
{
    struct urs_deflate *own = opaque;
    size_t *allocation = (size_t *)(void *)((uint8_t *)pointer - ALLOCATION_HEADER);
    URS_ASSERT(own->bytes >= *allocation);
    urs_memory_refund(own->memory, *allocation);
    own->bytes -= *allocation;
    free(allocation);
}

/* Makes the streams of a connection, none of them begun. Returns false without memory. */
static bool make_own(struct urs_deflate **own, struct urs_memory *memory)
{
    if (*own != NULL)
        return true;
    if (urs_fault(URS_FAULT_DEFLATE) != 0 || urs_memory_charge(memory, sizeof **own) != 0)
        return false;
    *own = calloc(1, sizeof **own);
    if (*own == NULL) {
        urs_memory_refund(memory, sizeof **own);
        return false;
    }
    (*own)->memory = memory;
    (*own)->bytes = sizeof **own;
    (*own)->compressor = (*own)->inflater = (z_stream){.zalloc = take, .zfree = give_back, .opaque = *own};
    return true;
}

size_t urs_deflate_memory_bytes(const struct urs_deflate *own) { return own == NULL ? 0 : own->bytes; }

void urs_deflate_free(struct urs_deflate *own)
{
    if (own == NULL)
        return;
    if (own->compresses)
        deflateEnd(&own->compressor);
    if (own->inflates)
        inflateEnd(&own->inflater);
    URS_ASSERT(own->bytes == sizeof *own);
    urs_memory_refund(own->memory, own->bytes);
    free(own);
}

/* ---- compressing --------------------------------------------------------------------------------------------- */

size_t urs_deflate_room(size_t bytes)
{
    /* The bound of zlib for any window and memory level, and a flush. */
    return bytes + (bytes >> 3) + (bytes >> 6) + 32;
}

static bool open_compressor(z_stream *stream, int bits, const struct urs_deflate_rules *rules)
{
    URS_ASSERT(bits >= WINDOW_BITS_MIN && bits <= WINDOW_BITS_MAX);
    return deflateInit2(stream, rules->level, Z_DEFLATED, -bits, rules->memory_level, Z_DEFAULT_STRATEGY) == Z_OK;
}

/* Returns a compressor of the thread with an empty window, or NULL without memory. The one that was used longest ago
 * gives its place to a new one. */
static z_stream *shared_compressor(int bits, const struct urs_deflate_rules *rules)
{
    struct shared *shared = of_thread();
    if (shared == NULL)
        return NULL;
    struct compressor *oldest = &shared->compressors[0];
    for (size_t index = 0; index < COMPRESSORS; index++) {
        struct compressor *found = &shared->compressors[index];
        if (found->bits == bits && found->level == rules->level && found->memory_level == rules->memory_level) {
            found->used_at = ++shared->uses;
            deflateReset(&found->stream);
            return &found->stream;
        }
        if (found->used_at < oldest->used_at)
            oldest = found;
    }
    if (oldest->bits != 0)
        deflateEnd(&oldest->stream);
    *oldest = (struct compressor){.bits = 0};
    if (urs_fault(URS_FAULT_DEFLATE) != 0 || !open_compressor(&oldest->stream, bits, rules))
        return NULL;
    oldest->bits = bits;
    oldest->level = rules->level;
    oldest->memory_level = rules->memory_level;
    oldest->used_at = ++shared->uses;
    return &oldest->stream;
}

static z_stream *own_compressor(struct urs_deflate **own, int bits, const struct urs_deflate_rules *rules,
                                struct urs_memory *memory)
{
    if (!make_own(own, memory))
        return NULL;
    if (!(*own)->compresses)
        (*own)->compresses = open_compressor(&(*own)->compressor, bits, rules);
    return (*own)->compresses ? &(*own)->compressor : NULL;
}

size_t urs_deflate_compress(struct urs_deflate **own, uint16_t terms, const struct urs_deflate_rules *rules,
                            struct urs_memory *memory, const uint8_t *data, size_t bytes, uint8_t *target)
{
    bool takeover = (terms & URS_DEFLATE_SERVER_TAKEOVER) != 0;
    int bits = urs_deflate_server_bits(terms);
    size_t room = urs_deflate_room(bytes);
    URS_ASSERT(bytes > 0 && terms != 0);
    if (room > UINT32_MAX)
        return 0;
    z_stream *stream = takeover ? own_compressor(own, bits, rules, memory) : shared_compressor(bits, rules);
    if (stream == NULL)
        return 0;
    stream->next_in = (Bytef *)(uintptr_t)data;
    stream->avail_in = (uInt)bytes;
    stream->next_out = target;
    stream->avail_out = (uInt)room;
    int result = deflate(stream, Z_SYNC_FLUSH);
    size_t written = room - stream->avail_out;
    bool flushed = result == Z_OK && stream->avail_in == 0 && stream->avail_out > 0 && written > sizeof tail
        && memcmp(target + written - sizeof tail, tail, sizeof tail) == 0;
    URS_ASSERT(flushed);
    if (flushed && (takeover || written - sizeof tail < bytes))
        return written - sizeof tail;
    deflateReset(stream);  /* as urs_deflate_forget */
    return 0;
}

void urs_deflate_forget(struct urs_deflate *own)
{
    /* A stream that begins again refers only to bytes that it sees from now on, so it does not matter that the window of
     * the peer is another one. */
    if (own != NULL && own->compresses)
        deflateReset(&own->compressor);
}

/* ---- inflating ----------------------------------------------------------------------------------------------- */

/* The place of a message: the scratch buffer, and a block as soon as it does not fit there. */
struct output {
    struct urs_memory *memory;
    struct urs_block *block;             /* NULL while the bytes are in the scratch buffer */
    uint8_t *scratch;
    uint64_t bytes_max;
    size_t bytes;                        /* of the regions that are full */
    size_t region_bytes;                 /* of the region that is being filled */
};

static void begin_region(struct output *output, z_stream *stream, uint8_t *at, size_t room)
{
    /* One byte beyond the limit shows that a message is too big. */
    uint64_t most = output->bytes_max - output->bytes;
    output->region_bytes = (size_t)(most < urs_min(room, CHUNK_BYTES_MAX) ? most + 1 : urs_min(room, CHUNK_BYTES_MAX));
    stream->next_out = at;
    stream->avail_out = (uInt)output->region_bytes;
}

/* Continues in a larger block after the region is full. Returns 0 or the error for which the connection fails. */
static int next_region(struct output *output, z_stream *stream)
{
    URS_ASSERT(stream->avail_out == 0);
    bool first = output->block == NULL;
    output->bytes += output->region_bytes;
    if (!first)
        output->block->end += output->region_bytes;
    if (output->bytes > output->bytes_max)
        return URS_ERROR_TOO_BIG;
    uint64_t left = output->bytes_max - output->bytes;
    size_t more = left < 3 * output->bytes ? (size_t)left + 1 : 3 * output->bytes;
    int error = urs_block_reserve(output->memory, &output->block, URS_BLOCK_HEADROOM, (first ? output->bytes : 0) + more,
                                  0);
    if (error != 0)
        return error;
    if (first) {
        memcpy(urs_block_data(output->block), output->scratch, output->bytes);
        output->block->end += output->bytes;
    }
    begin_region(output, stream, output->block->bytes + output->block->end, urs_block_room(output->block));
    return 0;
}

/* Inflates some input. *ended becomes true if it ends exactly with a last block (BFINAL). Returns 0 or an error. */
static int inflate_some(struct output *output, z_stream *stream, const uint8_t *data, size_t bytes, bool *ended)
{
    stream->next_in = (Bytef *)(uintptr_t)data;
    stream->avail_in = (uInt)bytes;
    for (;;) {
        int error = stream->avail_out == 0 ? next_region(output, stream) : 0;
        if (error != 0)
            return error;
        int result = inflate(stream, Z_SYNC_FLUSH);
        *ended = result == Z_STREAM_END;
        if (*ended) {
            /* RFC 7692 7.2.3.4: another stream may follow, and it may refer to the window of this one, which
             * inflateReset would forget. */
            inflateResetKeep(stream);
            if (stream->avail_in == 0)
                return 0;
        } else if (result == Z_MEM_ERROR) {
            return urs_memory_error(output->memory, (size_t)1 << WINDOW_BITS_MAX);
        } else if (result != Z_OK && result != Z_BUF_ERROR) {
            return URS_ERROR_COMPRESSION;
        } else if (stream->avail_out > 0) {
            return 0;  /* all input is used up */
        }
    }
}

/* Inflates a message and its tail. */
static int inflate_all(struct output *output, z_stream *stream, const uint8_t *data, size_t bytes)
{
    bool ended = false;
    int error = 0;
    while (bytes > 0 && error == 0) {
        size_t chunk = urs_min(bytes, CHUNK_BYTES_MAX);
        error = inflate_some(output, stream, data, chunk, &ended);
        data += chunk;
        bytes -= chunk;
    }
    if (error != 0 || ended)
        return error;
    /* Only in front of the lengths of a stored block may the tail be missing. Elsewhere the message is cut, or its tail
     * was sent: then the next message would begin in the middle of this one's last block. */
    if (!inflateSyncPoint(stream))
        return URS_ERROR_COMPRESSION;
    return inflate_some(output, stream, tail, sizeof tail, &ended);
}

/* Returns the stream for the messages of a peer, or NULL without memory. */
static z_stream *inflater_of(struct urs_deflate **own, uint16_t terms, struct urs_memory *memory, struct shared *shared)
{
    if ((terms & URS_DEFLATE_CLIENT_TAKEOVER) != 0) {
        int bits = urs_deflate_client_bits(terms);
        if (!make_own(own, memory))
            return NULL;
        if (!(*own)->inflates)
            (*own)->inflates = inflateInit2(&(*own)->inflater, -(bits < WINDOW_BITS_MIN ? WINDOW_BITS_MIN : bits)) == Z_OK;
        return (*own)->inflates ? &(*own)->inflater : NULL;
    }
    if (shared->inflates)
        inflateReset(&shared->inflater);
    else if (urs_fault(URS_FAULT_DEFLATE) == 0)
        shared->inflates = inflateInit2(&shared->inflater, -WINDOW_BITS_MAX) == Z_OK;
    return shared->inflates ? &shared->inflater : NULL;
}

int urs_deflate_inflate(struct urs_deflate **own, uint16_t terms, struct urs_memory *memory, const uint8_t *data,
                        size_t bytes, uint64_t bytes_max, struct urs_block **message)
{
    struct shared *shared = of_thread();
    URS_ASSERT(terms != 0 && *message == NULL);
    z_stream *stream = shared == NULL ? NULL : inflater_of(own, terms, memory, shared);
    if (stream == NULL)
        return urs_memory_error(memory, (size_t)1 << WINDOW_BITS_MAX);
    struct output output = {.memory = memory, .scratch = shared->scratch, .bytes_max = bytes_max};
    begin_region(&output, stream, output.scratch, SCRATCH_BYTES);
    int error = bytes > 0 ? inflate_all(&output, stream, data, bytes) : 0;
    size_t last_bytes = output.region_bytes - stream->avail_out;
    if (error == 0 && output.bytes + last_bytes > bytes_max)
        error = URS_ERROR_TOO_BIG;
    if (error == 0 && output.block == NULL) {
        output.block = urs_block_new(memory, last_bytes);
        if (output.block == NULL)
            error = urs_memory_error(memory, last_bytes);
        else
            memcpy(urs_block_data(output.block), output.scratch, last_bytes);
    }
    if (error != 0) {
        urs_block_drop(output.block);
        return error;
    }
    output.block->end += last_bytes;
    *message = output.block;
    return 0;
}
