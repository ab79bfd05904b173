/* The engine takes one frame at a time: whole frames in place, partial frames through a block. */
#include "engine.h"

#include <errno.h>
#include <string.h>

#include "frame.h"
#include "mask.h"

enum {
    RSV1 = 4,                            /* in urs_frame_header.rsv: the message is compressed, RFC 7692 6 */
    COMPRESSED_BYTES_SPARE = 256         /* a small message may be larger compressed, and have empty blocks */
};

static bool is_control(uint8_t opcode) { return (opcode & 0x8) != 0; }

uint16_t urs_engine_close_code(int error)
{
    switch (error) {
    case URS_ERROR_UTF8:
    case URS_ERROR_COMPRESSION:
        return URS_CLOSE_INVALID_PAYLOAD;
    case URS_ERROR_TOO_BIG:
        return URS_CLOSE_MESSAGE_TOO_BIG;
    case URS_ERROR_REFUSED_OPCODE:
        return URS_CLOSE_UNSUPPORTED_DATA;
    case URS_ERROR_MEMORY_BUDGET:
    case -ENOMEM:
        return URS_CLOSE_TRY_AGAIN_LATER;
    default:
        return URS_CLOSE_PROTOCOL_ERROR;
    }
}

const char *urs_engine_error_text(int error)
{
    switch (error) {
    case URS_ERROR_RSV: return "reserved bit set";
    case URS_ERROR_OPCODE: return "reserved opcode";
    case URS_ERROR_CONTROL_FRAGMENTED: return "fragmented control frame";
    case URS_ERROR_CONTROL_LENGTH: return "control frame over 125 bytes";
    case URS_ERROR_LENGTH_NOT_MINIMAL: return "payload length not in its shortest form";
    case URS_ERROR_LENGTH_TOP_BIT: return "payload length with the top bit set";
    case URS_ERROR_UNMASKED: return "unmasked client frame";
    case URS_ERROR_MASKED: return "masked server frame";
    case URS_ERROR_CONTINUATION: return "continuation without a message";
    case URS_ERROR_INTERLEAVED: return "new message inside a fragmented one";
    case URS_ERROR_CLOSE_PAYLOAD: return "close frame of one byte";
    case URS_ERROR_CLOSE_CODE: return "invalid close code";
    case URS_ERROR_UTF8: return "invalid UTF-8";
    case URS_ERROR_TOO_BIG: return "message too big";
    case URS_ERROR_REFUSED_OPCODE: return "this kind of data is not accepted";
    case URS_ERROR_COMPRESSION: return "invalid compressed data";
    case URS_ERROR_MEMORY_BUDGET: return "out of memory budget";
    case -ENOMEM: return "out of memory";
    default: return "protocol error";
    }
}

size_t urs_engine_partial_bytes(const struct urs_engine *engine)
{
    return engine->header_have + (engine->partial == NULL ? 0 : urs_block_bytes(engine->partial))
        + (engine->control == NULL ? 0 : urs_block_bytes(engine->control));
}

void urs_engine_clear(struct urs_engine *engine)
{
    urs_block_drop(engine->partial);
    urs_block_drop(engine->control);
    urs_deflate_free(engine->deflate);
    memset(engine, 0, sizeof *engine);
    engine->phase = URS_ENGINE_ENDED;
}

void urs_engine_agree(struct urs_engine *engine, uint16_t terms)
{
    if (terms == 0)
        return;
    URS_ASSERT(engine->phase == URS_ENGINE_AWAIT_HEADER && engine->header_have == 0 && engine->deflate == NULL);
    engine->deflate_terms = terms;
    engine->frame_rules = (uint8_t)(engine->frame_rules | URS_FRAME_FROM_CLIENT | URS_FRAME_RSV1_ALLOWED);
}

static int fail(struct urs_engine *engine, struct urs_input *input, struct urs_item *item, int error)
{
    urs_engine_clear(engine);
    input->next = input->end;
    *item = (struct urs_item){
        .kind = URS_ITEM_FAILED, .error = error, .close_code = urs_engine_close_code(error)};
    return URS_ITEM_FAILED;
}

/* Takes a close frame: its code and reason, RFC 6455 5.5.1. */
static int take_close(struct urs_engine *engine, struct urs_input *input, struct urs_item *item)
{
    int error = 0;
    unsigned code = URS_CLOSE_NO_STATUS;
    if (item->bytes == 1)
        error = URS_ERROR_CLOSE_PAYLOAD;
    if (item->bytes >= 2) {
        code = (unsigned)item->payload[0] << 8 | item->payload[1];
        item->payload += 2;
        item->bytes -= 2;
        struct urs_utf8 utf8 = {0};
        if (!urs_frame_close_code_ok(code))
            error = URS_ERROR_CLOSE_CODE;
        else if (urs_utf8_feed(&utf8, item->payload, item->bytes) >= 0 || !urs_utf8_complete(&utf8))
            error = URS_ERROR_UTF8;
    }
    if (error != 0) {
        urs_block_drop(item->block);
        return fail(engine, input, item, error);
    }
    urs_engine_clear(engine);
    input->next = input->end;
    item->kind = URS_ITEM_CLOSE;
    item->close_code = (uint16_t)code;
    return URS_ITEM_CLOSE;
}

/* Takes a control frame whose unmasked payload is in `item`. */
static int take_control(struct urs_engine *engine, struct urs_input *input, struct urs_item *item, uint8_t opcode)
{
    item->opcode = opcode;
    item->fin = true;
    if (opcode == URS_OPCODE_CLOSE)
        return take_close(engine, input, item);
    item->kind = opcode == URS_OPCODE_PING ? URS_ITEM_PING : URS_ITEM_PONG;
    return item->kind;
}

/* Checks the rules that join frames into messages, RFC 6455 5.4, and the limits. */
static int begin_data(struct urs_engine *engine, const struct urs_engine_rules *rules,
                      const struct urs_frame_header *header)
{
    if (header->opcode == URS_OPCODE_CONTINUATION) {
        if (engine->message_opcode == 0)
            return URS_ERROR_CONTINUATION;
    } else {
        if (engine->message_opcode != 0)
            return URS_ERROR_INTERLEAVED;
        if ((header->opcode == URS_OPCODE_TEXT && rules->refuse_text)
            || (header->opcode == URS_OPCODE_BINARY && rules->refuse_binary))
            return URS_ERROR_REFUSED_OPCODE;
        engine->message_bytes = 0;
        engine->utf8.state = 0;
        engine->compressed = (header->rsv & RSV1) != 0;
    }
    uint64_t bytes_max = rules->message_bytes_max;
    if (URS_UNLIKELY(engine->compressed))
        bytes_max += bytes_max / 4 + COMPRESSED_BYTES_SPARE;
    if (header->payload_bytes > bytes_max - engine->message_bytes)
        return URS_ERROR_TOO_BIG;
    engine->message_bytes += header->payload_bytes;
    return 0;
}

/* Every payload of a text or binary message passes through here, unmasked, inflated and in order: a whole message, a
 * fragment, or the part of one that a read brought. `ends` says that the message ends with it. Returns 0, or the error
 * for which the connection fails. */
static inline int accept_payload(struct urs_engine *engine, uint8_t message_opcode, const uint8_t *data, size_t bytes,
                                 bool ends)
{
    URS_ASSERT(message_opcode == URS_OPCODE_TEXT || message_opcode == URS_OPCODE_BINARY);
    if (message_opcode != URS_OPCODE_TEXT)
        return 0;
    bool valid = urs_utf8_feed(&engine->utf8, data, bytes) < 0 && (!ends || urs_utf8_complete(&engine->utf8));
    return valid ? 0 : URS_ERROR_UTF8;
}

/* Moves the ownership of a block to the item. */
static void give_block(struct urs_item *item, struct urs_block **block)
{
    URS_ASSERT(*block != NULL);
    item->payload = urs_block_data(*block);
    item->bytes = urs_block_bytes(*block);
    item->block = *block;
    *block = NULL;
}

/* Inflates a whole compressed message, which lies in the item, and accepts it. */
static int accept_compressed(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                             struct urs_input *input, struct urs_item *item)
{
    struct urs_block *message = NULL;
    URS_ASSERT(engine->compressed && engine->deflate_terms != 0 && item->fin);
    int error = urs_deflate_inflate(&engine->deflate, engine->deflate_terms, memory, item->payload, item->bytes,
                                    rules->message_bytes_max, &message);
    urs_block_drop(item->block);
    item->block = NULL;
    if (error == 0)
        error = accept_payload(engine, item->opcode, urs_block_data(message), urs_block_bytes(message), true);
    if (error != 0) {
        urs_block_drop(message);
        return fail(engine, input, item, error);
    }
    engine->compressed = false;
    give_block(item, &message);
    item->inflated = true;
    return item->kind;
}

/* The rules for the headers of the peer's frames. */
static inline int frame_rules(const struct urs_engine *engine)
{
    return engine->frame_rules != 0 ? engine->frame_rules : URS_FRAME_FROM_CLIENT;
}

/* Reads the header of the next frame, from the input or from the bytes kept from an earlier read and the input. Returns
 * the same values as urs_frame_parse; *in_place says whether the whole header lies in the input, in front of
 * input->next. */
static int take_header(struct urs_engine *engine, struct urs_input *input, struct urs_frame_header *header,
                       bool *in_place)
{
    *in_place = engine->header_have == 0;
    if (URS_LIKELY(*in_place)) {
        int size = urs_frame_parse(input->next, (size_t)(input->end - input->next), frame_rules(engine), header);
        if (size != 0) {
            input->next += size > 0 ? size : 0;
            return size;
        }
    }
    while (input->next < input->end) {
        engine->header[engine->header_have++] = *input->next++;
        int size = urs_frame_parse(engine->header, engine->header_have, frame_rules(engine), header);
        if (size != 0) {
            *in_place = false;
            engine->header_have = 0;
            return size;
        }
    }
    return 0;
}

/* Appends the payload bytes of the current frame that are in the input to the block, unmasked. Returns a pointer to the
 * first of them, or NULL with *error set. */
static uint8_t *collect(struct urs_engine *engine, struct urs_memory *memory, struct urs_block **block,
                        struct urs_input *input, size_t *taken, int *error)
{
    size_t bytes = urs_min((size_t)(input->end - input->next), engine->frame_left);
    size_t have = *block == NULL ? 0 : urs_block_bytes(*block);
    size_t expected = have + engine->frame_left;
    if (!engine->frame_fin)
        expected = urs_max(expected, 2 * (have + bytes) + 256);  /* the total is unknown: grow by doubling */
    URS_ASSERT(engine->phase != URS_ENGINE_ENDED && engine->header_have == 0);
    *error = urs_block_reserve(memory, block, URS_BLOCK_HEADROOM, bytes, expected);
    if (*error != 0)
        return NULL;
    uint8_t *target = (*block)->bytes + (*block)->end;
    urs_mask_move(target, input->next, bytes, engine->masking_key, engine->key_offset);
    (*block)->end += bytes;
    input->next += bytes;
    engine->frame_left -= bytes;
    engine->key_offset = (uint8_t)((engine->key_offset + bytes) & 3);
    *taken = bytes;
    return target;
}

/* Takes more bytes of a data frame that does not lie completely in one input, or of a fragmented message. */
static int continue_data(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                         struct urs_input *input, struct urs_item *item)
{
    size_t taken;
    int error;
    const uint8_t *chunk = collect(engine, memory, &engine->partial, input, &taken, &error);
    if (chunk == NULL)
        return fail(engine, input, item, error);
    bool frame_done = engine->frame_left == 0;
    bool message_done = frame_done && engine->frame_fin;
    bool compressed = engine->compressed;
    error = compressed ? 0 : accept_payload(engine, engine->message_opcode, chunk, taken, message_done);
    if (error != 0)
        return fail(engine, input, item, error);
    engine->phase = frame_done ? URS_ENGINE_AWAIT_HEADER : URS_ENGINE_AWAIT_PAYLOAD;
    if (!frame_done || !(message_done || (rules->frames && !compressed)))
        return URS_ITEM_NONE;

    item->kind = rules->frames ? URS_ITEM_FRAME : URS_ITEM_MESSAGE;
    item->opcode = rules->frames && !compressed ? engine->frame_opcode : engine->message_opcode;
    item->fin = message_done;
    give_block(item, &engine->partial);
    if (message_done)
        engine->message_opcode = 0;
    return compressed ? accept_compressed(engine, rules, memory, input, item) : item->kind;
}

static int continue_control(struct urs_engine *engine, struct urs_memory *memory, struct urs_input *input,
                            struct urs_item *item)
{
    size_t taken;
    int error;
    if (collect(engine, memory, &engine->control, input, &taken, &error) == NULL)
        return fail(engine, input, item, error);
    if (engine->frame_left > 0)
        return URS_ITEM_NONE;
    give_block(item, &engine->control);
    /* A control frame may come between the fragments of a message, never inside a frame. */
    engine->phase = URS_ENGINE_AWAIT_HEADER;
    return take_control(engine, input, item, engine->frame_opcode);
}

/* Takes a frame that lies completely in the input, including its header: nothing is copied. */
static int whole_frame(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                       struct urs_input *input, const struct urs_frame_header *header, struct urs_item *item)
{
    uint8_t *payload = input->next;
    size_t bytes = (size_t)header->payload_bytes;
    urs_mask_move(payload, payload, bytes, header->masking_key, 0);
    input->next += bytes;
    item->payload = payload;
    item->bytes = bytes;
    if (is_control(header->opcode))
        return take_control(engine, input, item, header->opcode);

    item->kind = rules->frames ? URS_ITEM_FRAME : URS_ITEM_MESSAGE;
    item->opcode = header->opcode;
    item->fin = header->fin;
    if (URS_UNLIKELY(engine->compressed))
        return accept_compressed(engine, rules, memory, input, item);
    uint8_t message_opcode = engine->message_opcode != 0 ? engine->message_opcode : header->opcode;
    int error = accept_payload(engine, message_opcode, payload, bytes, header->fin);
    if (error != 0)
        return fail(engine, input, item, error);
    engine->message_opcode = header->fin ? 0 : message_opcode;
    return item->kind;
}

/* Takes the header of a frame, and as much of its payload as the input has. */
static int begin_frame(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                       struct urs_input *input, struct urs_item *item)
{
    struct urs_frame_header header;
    bool in_place;
    int size = take_header(engine, input, &header, &in_place);
    if (size == 0)
        return URS_ITEM_NONE;
    if (size > 0 && !is_control(header.opcode))
        size = begin_data(engine, rules, &header);
    if (size < 0)
        return fail(engine, input, item, size);

    bool whole = in_place && header.payload_bytes <= (size_t)(input->end - input->next);
    bool alone = is_control(header.opcode) || (rules->frames && !engine->compressed)
        || (header.fin && engine->message_opcode == 0);
    if (URS_LIKELY(whole && alone))
        return whole_frame(engine, rules, memory, input, &header, item);

    memcpy(engine->masking_key, header.masking_key, sizeof engine->masking_key);
    engine->key_offset = 0;
    engine->frame_left = header.payload_bytes;
    engine->frame_opcode = header.opcode;
    engine->frame_fin = header.fin;
    if (is_control(header.opcode)) {
        engine->phase = URS_ENGINE_AWAIT_CONTROL;
        return continue_control(engine, memory, input, item);
    }
    if (engine->message_opcode == 0)
        engine->message_opcode = header.opcode;
    engine->phase = URS_ENGINE_AWAIT_PAYLOAD;
    return continue_data(engine, rules, memory, input, item);
}

int urs_engine_next(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_memory *memory,
                    struct urs_input *input, struct urs_item *item)
{
    item->block = NULL;
    item->error = 0;
    item->inflated = false;
    while (input->next < input->end) {
        int kind;
        switch ((enum urs_engine_phase)engine->phase) {
        case URS_ENGINE_AWAIT_HEADER:
            kind = begin_frame(engine, rules, memory, input, item);
            break;
        case URS_ENGINE_AWAIT_PAYLOAD:
            kind = continue_data(engine, rules, memory, input, item);
            break;
        case URS_ENGINE_AWAIT_CONTROL:
            kind = continue_control(engine, memory, input, item);
            break;
        case URS_ENGINE_ENDED:
        default:
            input->next = input->end;
            kind = URS_ITEM_NONE;
            break;
        }
        if (kind != URS_ITEM_NONE)
            return kind;
    }
    item->kind = URS_ITEM_NONE;
    return URS_ITEM_NONE;
}

/* Unmasks the payload of a whole message and moves it to `target`. If it is not accepted, returns false with the bytes
 * masked again: urs_engine_next then reports the error. */
static inline bool move_payload(struct urs_engine *engine, uint8_t opcode, uint8_t *target, uint8_t *payload,
                                size_t bytes, const uint8_t *key)
{
    if (opcode == URS_OPCODE_BINARY) {
        urs_mask_move(target, payload, bytes, key, 0);
        return accept_payload(engine, opcode, target, bytes, true) == 0;  /* a binary message is always accepted */
    }
    urs_mask_move(payload, payload, bytes, key, 0);
    engine->utf8.state = 0;
    if (accept_payload(engine, opcode, payload, bytes, true) != 0) {
        urs_mask_move(payload, payload, bytes, key, 0);
        return false;
    }
    memmove(target, payload, bytes);
    return true;
}

int urs_engine_echo(struct urs_engine *engine, const struct urs_engine_rules *rules, struct urs_input *input,
                    struct urs_item *item)
{
    enum { HEADER = 6, ANSWER = 2, TEXT = URS_FRAME_FIN | URS_OPCODE_TEXT, BINARY = URS_FRAME_FIN | URS_OPCODE_BINARY };
    const size_t bytes_max = urs_min(rules->message_bytes_max, URS_FRAME_CONTROL_BYTES_MAX);
    uint8_t *frame = input->next;
    uint8_t *start = frame + HEADER - ANSWER;
    uint8_t *target = start;
    uint32_t count = 0;
    if (engine->phase != URS_ENGINE_AWAIT_HEADER || engine->header_have > 0 || engine->message_opcode != 0
        || (frame_rules(engine) & ~URS_FRAME_RSV1_ALLOWED) != URS_FRAME_FROM_CLIENT
        || urs_engine_compresses(engine, rules, bytes_max))
        return URS_ITEM_NONE;
    for (; input->end - frame >= HEADER; count++) {
        uint8_t first = frame[0];
        size_t bytes = frame[1] & ~(size_t)URS_FRAME_MASKED;
        bool small = (frame[1] & URS_FRAME_MASKED) != 0 && bytes <= bytes_max;
        if (!small || (size_t)(input->end - frame) < HEADER + bytes)
            break;
        bool taken = (first == BINARY && !rules->refuse_binary) || (first == TEXT && !rules->refuse_text);
        uint8_t opcode = first == BINARY ? URS_OPCODE_BINARY : URS_OPCODE_TEXT;
        if (!taken || !move_payload(engine, opcode, target + ANSWER, frame + HEADER, bytes, frame + ANSWER))
            break;
        target[0] = first;
        target[1] = (uint8_t)bytes;
        target += ANSWER + bytes;
        frame += HEADER + bytes;
    }
    if (count == 0)
        return URS_ITEM_NONE;
    URS_ASSERT(target <= frame && frame <= input->end);
    input->next = frame;
    *item = (struct urs_item){
        .kind = URS_ITEM_ECHO_RUN, .payload = start, .bytes = (size_t)(target - start), .count = count};
    return URS_ITEM_ECHO_RUN;
}
