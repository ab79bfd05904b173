/* What a connection says and what it must hear: masked frames and their answers, laid out once so that sending is a
 * pointer into them and verifying is a memcmp against them. No I/O. */
#ifndef LOAD_SCRIPT_H
#define LOAD_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum protocol {
    PROTOCOL_WEBSOCKET, /* the answer to a frame is the same message, unmasked */
    PROTOCOL_TCP        /* no upgrade: the same bytes go out, and come back as they are */
};

/* A connection's stream of messages is periodic: message k is variant k % variants. Without verification there is one
 * variant, so that the client's memory stays in its cache; with it there are as many as fit into a few MiB, so that a
 * lost, doubled or exchanged answer is seen. */
struct script {
    uint8_t *frames;     /* variants + burst_messages - 1 frames, back to back: any burst is one piece of memory */
    uint8_t *answers;    /* variants answers, back to back: one period of what comes back */
    size_t frame_bytes;  /* of each */
    size_t answer_bytes; /* of each */
    unsigned variants;
    unsigned burst_messages; /* the largest burst that `frames` holds */
};

/* `burst_messages` is what is wanted; the script may hold less if the frames are large. */
struct script script_make(enum protocol protocol, bool text, size_t payload_bytes, unsigned burst_messages,
                          bool verify);

/* Where the frames of a burst begin whose first message is the `sequence`th of its connection. */
static inline const uint8_t *script_burst(const struct script *script, uint64_t sequence)
{
    return script->frames + (sequence % script->variants) * script->frame_bytes;
}

/* Compares `count` bytes which arrived with what byte `offset` of the stream and the following must be. Returns the
 * index of the first that differs, or `count`. */
size_t script_first_difference(const struct script *script, uint64_t offset, const uint8_t *bytes, size_t count);

/* The request that begins a session; the key is constant, and so is the right Sec-WebSocket-Accept. */
size_t script_upgrade_request(char *request, size_t room, const char *host, unsigned port, const char *path);
const char *script_upgrade_accept(void);

/* A masked close frame with code 1000. */
extern const uint8_t script_close_frame[8];

#endif
