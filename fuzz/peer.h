/* The other end of a session under fuzzing: the bytes that it wrote, the items that a reference engine finds in them,
 * the frames that it received, and the frames that it may receive. The reactor must agree with the reference for any
 * chunks. */
#ifndef FUZZ_PEER_H
#define FUZZ_PEER_H

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "allocate.h"
#include "engine.h"
#include "frame.h"
#include "support.h"

/* Things seen at one place that must be seen at another, oldest first: one hash per thing. */
struct queue {
    struct string hashes;
    size_t first;
};

static inline void queue_add(struct queue *queue, uint64_t hash) { string_add(&queue->hashes, &hash, sizeof hash); }

static inline size_t queue_left(const struct queue *queue)
{
    return queue->hashes.bytes / sizeof(uint64_t) - queue->first;
}

static inline uint64_t queue_take(struct queue *queue)
{
    uint64_t hash;
    CHECK(queue_left(queue) > 0);
    memcpy(&hash, queue->hashes.data + sizeof hash * queue->first++, sizeof hash);
    return hash;
}

/* Removes a hash from any position. Returns false if it is not there. */
static inline bool queue_remove(struct queue *queue, uint64_t hash)
{
    for (size_t index = queue->first; index < queue->hashes.bytes / sizeof hash; index++) {
        uint8_t *place = queue->hashes.data + sizeof hash * index;
        if (memcmp(place, &hash, sizeof hash) == 0) {
            memcpy(place, queue->hashes.data + sizeof hash * queue->first++, sizeof hash);
            return true;
        }
    }
    return false;
}

/* FNV-1a of a payload and its kind, opcode and FIN bit. */
static inline uint64_t hash_of(unsigned kind, unsigned opcode, bool fin, const uint8_t *data, size_t bytes)
{
    uint64_t hash = UINT64_C(14695981039346656037) ^ (kind << 16 | opcode << 8 | (unsigned)fin);
    for (size_t index = 0; index < bytes; index++)
        hash = (hash ^ data[index]) * UINT64_C(1099511628211);
    return hash;
}

static inline uint64_t hash_of_item(const struct urs_item *item)
{
    if (item->kind == URS_ITEM_FAILED)
        return hash_of(item->kind, item->close_code, false, NULL, 0);
    unsigned opcode = item->kind == URS_ITEM_CLOSE ? item->close_code : item->opcode;
    return hash_of(item->kind, opcode, item->fin, item->payload, item->bytes);
}

/* The hash of a frame that the reactor accepted for sending. It is odd for a pong, which may be left out if the backlog
 * is full. */
static inline uint64_t hash_of_answer(unsigned opcode, bool fin, const uint8_t *data, size_t bytes)
{
    return (hash_of(0, opcode, fin, data, bytes) & ~UINT64_C(1)) | (opcode == URS_OPCODE_PONG);
}

struct peer {
    int fd;                              /* -1: none */
    bool used;                           /* each peer is used for one connection only */
    bool adopted;                        /* no opening request */
    bool refused;                        /* it must receive nothing except an HTTP response */
    bool open;                           /* on_open was called, or could have been called */
    bool ended;                          /* ... and so was on_close */
    bool unfinished;                     /* a fragment was echoed, and the last one is still to come */
    bool closing;                        /* the handler closed or aborted it: it must get no further message */
    uint64_t id;
    struct sockaddr_un name;
    socklen_t name_bytes;

    struct string unsent;                /* the end of a frame that is still to be written */
    struct string written;               /* the bytes that its socket took, and the prefix of an adoption */
    size_t read_by_reference;
    struct urs_engine reference;
    struct urs_memory memory;
    struct queue items;                  /* items that the reference has found and the reactor must still find */

    struct string received;
    size_t parsed;
    bool got_head;
    bool got_close;
    uint8_t ping[8];                     /* the payload of the last ping that the reactor itself made */
    struct queue expected;               /* frames, in this order ... */
    struct queue pongs;                  /* ... and expected pongs: some of these, in any order */
};

static inline void peer_reset(struct peer *peer)
{
    if (peer->fd >= 0)
        close(peer->fd);
    urs_engine_clear(&peer->reference);
    CHECK(peer->memory.bytes_used == 0);
    urs_memory_clear(&peer->memory);
    string_free(&peer->unsent);
    string_free(&peer->written);
    string_free(&peer->received);
    string_free(&peer->items.hashes);
    string_free(&peer->expected.hashes);
    string_free(&peer->pongs.hashes);
}

/* Sends as much of the earlier remainder and of the bytes as the socket takes, except the last `keep` bytes; the rest
 * waits. */
static inline void peer_write(struct peer *peer, const uint8_t *data, size_t bytes, size_t keep)
{
    string_add(&peer->unsent, data, bytes);
    size_t offered = peer->unsent.bytes - (keep < peer->unsent.bytes ? keep : 0);
    ssize_t sent = peer->fd < 0 ? -1 : send(peer->fd, peer->unsent.data, offered, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0)
        return;
    string_add(&peer->written, peer->unsent.data, (size_t)sent);
    peer->unsent.bytes -= (size_t)sent;
    memmove(peer->unsent.data, peer->unsent.data + sent, peer->unsent.bytes);
}

/* Lets the reference engine read the bytes written so far. */
static inline void peer_consult_reference(struct peer *peer, const struct urs_engine_rules *rules)
{
    uint32_t failing = allocations_left;
    size_t bytes = peer->written.bytes - peer->read_by_reference;
    uint8_t *copy = exact_copy(peer->written.data == NULL ? NULL : peer->written.data + peer->read_by_reference, bytes);
    struct urs_input input = {.next = copy, .end = copy + bytes};
    struct urs_item item;
    int kind;
    allocations_left = 0;
    while ((kind = urs_engine_next(&peer->reference, rules, &peer->memory, &input, &item)) != URS_ITEM_NONE) {
        if (kind != URS_ITEM_PONG)
            queue_add(&peer->items, hash_of_item(&item));
        urs_block_drop(item.block);
    }
    peer->read_by_reference = peer->written.bytes;
    allocations_left = failing;
    free(copy);
}

/* Parses the head of an HTTP response at the start; nothing may follow a response that refuses. */
static inline bool parse_head(struct peer *peer)
{
    if (peer->adopted || peer->got_head)
        return true;
    const uint8_t *start = peer->received.data;
    const uint8_t *end = peer->received.bytes < 4 ? NULL : memmem(start, peer->received.bytes, "\r\n\r\n", 4);
    if (end == NULL)
        return false;
    CHECK(memcmp(start, "HTTP/1.1 ", 9) == 0);
    peer->got_head = true;
    peer->parsed = (size_t)(end - start) + 4;
    peer->refused = memcmp(start + 9, "101", 3) != 0;
    return true;
}

/* Checks a received frame: it must be the next expected one (pings and close frames may come at any time). `drops` says
 * that messages may be missing. */
static inline void match(struct peer *peer, const struct urs_frame_header *header, const uint8_t *payload, bool drops)
{
    CHECK(!peer->got_close);
    peer->got_close = header->opcode == URS_OPCODE_CLOSE;
    if (header->opcode == URS_OPCODE_PING && header->payload_bytes == sizeof peer->ping)
        memcpy(peer->ping, payload, sizeof peer->ping);
    if (header->opcode == URS_OPCODE_CLOSE || header->opcode == URS_OPCODE_PING)
        return;
    uint64_t hash = hash_of_answer(header->opcode, header->fin, payload, header->payload_bytes);
    if (header->opcode == URS_OPCODE_PONG) {
        /* The pong of the latest ping may replace a pong that waits, so it may come in front of other frames. */
        CHECK(queue_remove(&peer->pongs, hash));
        return;
    }
    while (queue_take(&peer->expected) != hash)
        CHECK(drops);
}

/* Reads at most `bytes` bytes and checks them against the expected frames; returns how many bytes came. */
static inline size_t peer_read(struct peer *peer, size_t bytes, bool drops)
{
    if (peer->fd < 0 || bytes == 0)
        return 0;
    uint8_t *target = string_extend(&peer->received, bytes);
    ssize_t got = recv(peer->fd, target, bytes, MSG_DONTWAIT);
    size_t taken = got > 0 ? (size_t)got : 0;
    peer->received.bytes -= bytes - taken;
    if (!parse_head(peer) || peer->refused)
        return taken;
    while (peer->parsed < peer->received.bytes) {
        struct urs_frame_header header;
        const uint8_t *data = peer->received.data + peer->parsed;
        size_t left = peer->received.bytes - peer->parsed;
        int size = urs_frame_parse(data, left, URS_FRAME_FROM_SERVER, &header);
        CHECK(size >= 0 && !peer->got_close);
        if (size == 0 || header.payload_bytes > left - (size_t)size)
            return taken;
        match(peer, &header, data + size, drops);
        peer->parsed += (size_t)size + header.payload_bytes;
    }
    return taken;
}

#endif
