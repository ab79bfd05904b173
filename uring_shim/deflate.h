/* permessage-deflate, RFC 7692 7: one message at a time, compressed or inflated as a whole. No type of a compression
 * library leaves deflate.c. Each thread has one set of compressors and one buffer, which all of its connections share:
 * they are made on first use, freed with the thread, and charged to no budget. */
#ifndef URS_DEFLATE_H
#define URS_DEFLATE_H

#include "base.h"
#include "block.h"

/* cdef: begin */

/* The parameters that an opening handshake agreed on, RFC 7692 7.1, or-ed into 16 bits. 0: no compression. */
enum urs_deflate_term {
    URS_DEFLATE_SERVER_BITS = 0x000f,    /* the base-2 logarithm of the window that we compress with, 9 to 15 */
    URS_DEFLATE_CLIENT_BITS = 0x00f0,    /* the same for the peer, 8 to 15, shifted by 4 */
    URS_DEFLATE_SERVER_TAKEOVER = 0x0100,/* we compress a message with the window that the last one left */
    URS_DEFLATE_CLIENT_TAKEOVER = 0x0200 /* the peer does */
};

/* How messages are compressed. Many connections share one set. */
struct urs_deflate_rules {
    uint64_t bytes_min;                  /* smaller messages are sent uncompressed */
    uint8_t level;                       /* 1 (fast) to 9 (small) */
    uint8_t memory_level;                /* 1 to 9: the memory for the search, 2 to the power of 9 plus this */
};

/* The streams of a connection that keep their windows from one message to the next. NULL until the first compressed
 * message, and for ever without context takeover. */
struct urs_deflate;

/* Returns the name and the version of the library, "zlib 1.2.13" for example. */
const char *urs_deflate_library(void);

/* Returns how many bytes the buffer of urs_deflate_compress must have for a message of that size. */
size_t urs_deflate_room(size_t bytes);

/* Compresses a message of at least one byte into `target`, without the last four bytes of the flush (RFC 7692 7.2.1).
 * `own` has the connection's streams, charged to `memory`. Returns the bytes written; 0 if the message must be sent
 * uncompressed, because it does not get smaller or a stream got no memory. With context takeover the peer must get what
 * was written, or urs_deflate_forget must follow. */
size_t urs_deflate_compress(struct urs_deflate **own, uint16_t terms, const struct urs_deflate_rules *rules,
                            struct urs_memory *memory, const uint8_t *data, size_t bytes, uint8_t *target);

/* Empties the window that the compressor of a connection keeps, because the last message could not be sent after all.
 * NULL is allowed. */
void urs_deflate_forget(struct urs_deflate *own);

/* Inflates the payload of a compressed message into a new block of at most `bytes_max` bytes, charged to `memory`, whose
 * only reference the caller then owns. Stops at the first byte too many. Returns 0, URS_ERROR_COMPRESSION for data that
 * RFC 7692 7.2.2 does not allow, URS_ERROR_TOO_BIG, URS_ERROR_MEMORY_BUDGET or -ENOMEM. After an error the connection
 * must end: the two windows may differ. */
int urs_deflate_inflate(struct urs_deflate **own, uint16_t terms, struct urs_memory *memory, const uint8_t *data,
                        size_t bytes, uint64_t bytes_max, struct urs_block **message);

/* Returns what the streams of a connection are charged for. NULL is allowed. */
size_t urs_deflate_memory_bytes(const struct urs_deflate *own);

/* Frees the streams of a connection. NULL is allowed. */
void urs_deflate_free(struct urs_deflate *own);

/* cdef: end */

static inline int urs_deflate_server_bits(uint16_t terms) { return terms & URS_DEFLATE_SERVER_BITS; }
static inline int urs_deflate_client_bits(uint16_t terms) { return (terms & URS_DEFLATE_CLIENT_BITS) >> 4; }

#endif
