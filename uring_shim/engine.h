/* The receiving side of the protocol for one connection, RFC 6455 sections 5 to 8: bytes in, items out, one at a time.
 * No I/O, no clock, no descriptor, no Python. outbound.h writes the replies that items require. */
#ifndef URS_ENGINE_H
#define URS_ENGINE_H

#include "base.h"
#include "block.h"
#include "deflate.h"
#include "utf8.h"

/* cdef: begin */

enum urs_engine_phase {
    URS_ENGINE_AWAIT_HEADER = 0,
    URS_ENGINE_AWAIT_PAYLOAD = 1,        /* of a text, binary or continuation frame */
    URS_ENGINE_AWAIT_CONTROL = 2,        /* the payload of a control frame */
    URS_ENGINE_ENDED = 3                 /* a close frame or a violation was seen: all further input is ignored */
};

enum urs_item_kind {
    URS_ITEM_NONE = 0,                   /* the input is used up */
    URS_ITEM_MESSAGE = 1,                /* a whole message */
    URS_ITEM_FRAME = 2,                  /* one fragment, or an unfragmented message: only under rules.frames */
    URS_ITEM_PING = 3,
    URS_ITEM_PONG = 4,
    URS_ITEM_CLOSE = 5,                  /* close_code is the peer's code (1005 for none), the payload is the reason */
    URS_ITEM_FAILED = 6,                 /* the peer broke a rule: error says which, close_code is the code to reply
                                            with */
    URS_ITEM_ECHO_RUN = 7                /* only from urs_engine_echo: `count` messages, already turned into their
                                            replies */
};

/* The limits for the messages of a connection. Many connections share one set. */
struct urs_engine_rules {
    uint64_t message_bytes_max;          /* of a whole message, all its fragments together */
    bool frames;                         /* deliver each fragment as it arrives instead of whole messages */
    bool refuse_text;                    /* reply to text with close code 1003 */
    bool refuse_binary;                  /* reply to binary with close code 1003 */
    struct urs_deflate_rules deflate;    /* only for connections that agreed on compression */
};

/* The state of one connection. Zero-initialise it; urs_engine_clear frees what it holds. */
struct urs_engine {
    struct urs_block *partial;           /* the unfinished message (under rules.frames: the unfinished frame) */
    struct urs_block *control;           /* a control frame that was cut by the end of a read */
    uint64_t frame_left;                 /* payload bytes of the current frame that are still to come */
    uint64_t message_bytes;              /* of the unfinished message: the sum of its frame headers so far */
    struct urs_utf8 utf8;
    uint8_t masking_key[4];
    uint8_t header[14];                  /* the first bytes of a header that was cut by the end of a read */
    uint8_t header_have;
    uint8_t phase;                       /* enum urs_engine_phase */
    uint8_t message_opcode;              /* of the unfinished fragmented message; 0 for none */
    uint8_t frame_opcode;
    bool frame_fin;
    uint8_t key_offset;                  /* the index in the masking key for the next payload byte */
    uint8_t frame_rules;                 /* enum urs_frame_rule, or-ed: the role of the peer, and the reserved bits of
                                            the extensions in use. 0 stands for URS_FRAME_FROM_CLIENT. Set it before the
                                            first input */
    bool compressed;                     /* the unfinished message began with RSV1 */
    uint16_t deflate_terms;              /* enum urs_deflate_term, or-ed: see urs_engine_agree */
    struct urs_deflate *deflate;         /* the windows that context takeover keeps; else NULL */
};

/* Bytes received from the peer. The engine writes into them (it unmasks in place) and moves `next` forward. */
struct urs_input {
    uint8_t *next;
    uint8_t *end;
};

/* An item that urs_engine_next found. The payload lies in the input, or in `block`, whose only reference the caller
 * then owns. The bytes in front of the payload may be overwritten; there are always enough for the header of a reply of
 * the same size. */
struct urs_item {
    uint8_t *payload;
    size_t bytes;
    struct urs_block *block;
    int32_t error;                       /* enum urs_error, or -ENOMEM; only in URS_ITEM_FAILED */
    uint16_t close_code;                 /* only in URS_ITEM_CLOSE and URS_ITEM_FAILED */
    uint8_t kind;                        /* enum urs_item_kind */
    uint8_t opcode;                      /* of the message or, under rules.frames, of the frame */
    bool fin;
    bool inflated;                       /* the message was compressed: its bytes did not come over the wire */
    uint32_t count;                      /* only in URS_ITEM_ECHO_RUN, and in events that give it another meaning */
};

/* Takes the next item from the input and returns its kind; call it until it returns URS_ITEM_NONE. Bytes that do not
 * make a whole item are copied (charged to `memory`), so that the buffer of the input is free afterwards. Text is
 * validated as it arrives and fails at its first invalid byte. No item follows URS_ITEM_CLOSE or URS_ITEM_FAILED. */
int urs_engine_next(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                    struct urs_input *input, struct urs_item *item);

/* Lets the peer send compressed messages (RFC 7692), and compresses those sent to it. `terms` are those of the opening
 * handshake (enum urs_deflate_term, or-ed; 0 changes nothing). Call it before the first input. A compressed message is
 * an item of its own only as a whole, also under rules.frames. On the wire it may be up to a quarter and 256 bytes
 * larger than rules.message_bytes_max. */
void urs_engine_agree(struct urs_engine *engine, uint16_t terms);

/* For an echo: if the input begins with whole messages of at most 125 bytes, turns all of them into their replies,
 * contiguous and in place, and returns URS_ITEM_ECHO_RUN; the payload consists of these frames. Otherwise, and if the
 * peer is no client or such a reply would be compressed, leaves the input unchanged and returns URS_ITEM_NONE:
 * urs_engine_next must take the next item. */
int urs_engine_echo(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_input *input,
                    struct urs_item *item);

/* Returns the close code for an error of the engine, RFC 6455 7.4.1. */
uint16_t urs_engine_close_code(int error);

/* Returns a short English sentence for an error of the engine, for close reasons (at most 123 bytes) and logs. */
const char *urs_engine_error_text(int error);

/* Returns how many bytes of an unfinished frame or message the engine holds. */
size_t urs_engine_partial_bytes(const struct urs_engine *engine);

/* Frees everything that the engine holds and resets it, except that phase becomes URS_ENGINE_ENDED: further input is
 * ignored. */
void urs_engine_clear(struct urs_engine *engine);

/* cdef: end */

/* Returns true if a message of that size is compressed when it is sent, unless its sender forbids it. */
static inline bool urs_engine_compresses(const struct urs_engine *engine, const struct urs_engine_rules *rules,
                                         size_t bytes)
{
    return URS_UNLIKELY(engine->deflate_terms != 0) && bytes > 0 && bytes >= rules->deflate.bytes_min;
}

#endif
