/* The bytes that a connection sends and those that it must receive: masked frames and their replies, laid out once, so
 * that sending needs only a pointer into them and verifying needs only a memcmp. No I/O. */
#ifndef LOAD_SCRIPT_H
#define LOAD_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum protocol {
    PROTOCOL_WEBSOCKET, /* the reply to a frame is the same message, unmasked */
    PROTOCOL_TCP        /* no upgrade: the same bytes are sent and come back unchanged */
};

/* The messages of a connection are periodic: message k is variant k % variants. Without verification there is one
 * variant, so that the client's memory stays in its cache. With verification there are as many as fit into a few MiB,
 * so that a lost, duplicated or exchanged reply is noticed. */
struct script {
    uint8_t *frames;     /* variants + burst_messages - 1 frames without gaps: any burst is one contiguous piece of
                            memory */
    uint8_t *answers;    /* variants replies without gaps: one period of the bytes that come back */
    size_t frame_bytes;  /* of each */
    size_t answer_bytes; /* of each */
    unsigned variants;
    unsigned burst_messages; /* the largest burst that `frames` holds */
};

/* `burst_messages` is the requested number; the script may hold fewer if the frames are large. */
struct script script_make(enum protocol protocol, bool text, size_t payload_bytes, unsigned burst_messages,
                          bool verify);

/* Returns the first byte of a burst whose first message is number `sequence` of its connection. */
static inline const uint8_t *script_burst(const struct script *script, uint64_t sequence)
{
    return script->frames + (sequence % script->variants) * script->frame_bytes;
}

/* Compares `count` received bytes with the expected bytes from position `offset` of the stream on. Returns the index of
 * the first byte that differs, or `count`. */
size_t script_first_difference(const struct script *script, uint64_t offset, const uint8_t *bytes, size_t count);

/* The request that begins a session. Its key is constant, and so is the correct Sec-WebSocket-Accept. */
size_t script_upgrade_request(char *request, size_t room, const char *host, unsigned port, const char *path);
const char *script_upgrade_accept(void);

/* A masked close frame with code 1000. */
extern const uint8_t script_close_frame[8];

#endif
