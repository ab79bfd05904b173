/* Fuzzes the engine together with outbound. One stream is delivered whole, in chunks, in chunks to urs_engine_echo, and
 * in chunks while memory fails.
 *
 * The input consists of two bytes of rules, two bytes that seed the replies, one byte of chunk sizes, three bytes of
 * memory limits, and the stream: raw, or as records that describe frames. These must hold: all deliveries give the same
 * items, and whole and chunked ones the same replies; the replies equal those that an independent writer makes of the
 * items; a peer makes us allocate only in proportion to the bytes that it has sent; and all memory is freed in every
 * case. */
#include "allocate.h"
#include "engine.h"
#include "frame.h"
#include "outbound.h"
#include "support.h"

enum { STREAM_BYTES_MAX = 1 << 18, CHUNKS_MAX = 2048, GROWTH = 2 * 64, BLOCK_OVERHEAD_BYTES = 64 * 1024 };

/* How a stream is delivered. */
struct delivery {
    const struct urs_engine_rules *rules;
    uint32_t answer_seed;
    uint8_t chunk_log2;                  /* chunks of 1 to 2^chunk_log2 bytes, or longer if there would be too many;
                                            255: one chunk */
    size_t memory_bytes_max;             /* 0: no limit */
    uint32_t allocation_to_fail;         /* 0: no allocation fails */
    bool echo;                           /* every message is echoed unchanged, by urs_engine_echo where possible */
};

/* One connection and all its results. */
struct run {
    const struct delivery *delivery;
    struct urs_engine engine;
    struct urs_memory memory;
    struct urs_outbox outbox;
    struct urs_outbound outbound;
    struct string items;
    struct string sent;                  /* the bytes that outbound would have sent */
    struct string expected;              /* the bytes that it should have sent */
    size_t fed;
    bool close_sent;
    bool out_of_memory;
};

static void check_item(const struct run *run, const struct urs_item *item)
{
    const struct urs_engine_rules *rules = run->delivery->rules;
    switch (item->kind) {
    case URS_ITEM_MESSAGE:
        CHECK(!rules->frames && item->fin);
        CHECK(item->opcode == URS_OPCODE_TEXT || item->opcode == URS_OPCODE_BINARY);
        CHECK(item->bytes <= rules->message_bytes_max);
        break;
    case URS_ITEM_FRAME:
        CHECK(rules->frames && item->opcode <= URS_OPCODE_BINARY);
        CHECK(item->bytes <= rules->message_bytes_max);
        break;
    case URS_ITEM_PING:
    case URS_ITEM_PONG:
        CHECK(item->bytes <= URS_FRAME_CONTROL_BYTES_MAX);
        break;
    case URS_ITEM_CLOSE:
        CHECK(item->bytes <= URS_CLOSE_REASON_BYTES_MAX);
        CHECK(item->close_code == URS_CLOSE_NO_STATUS ? item->bytes == 0 : urs_frame_close_code_ok(item->close_code));
        break;
    default:
        CHECK(item->kind == URS_ITEM_FAILED && item->error < 0 && item->block == NULL);
        CHECK(urs_frame_close_code_ok(item->close_code));
        CHECK(strlen(urs_engine_error_text(item->error)) <= URS_CLOSE_REASON_BYTES_MAX);
        break;
    }
}

static void record_item(struct run *run, const struct urs_item *item)
{
    bool payload = item->kind != URS_ITEM_FAILED;
    uint64_t head[] = {item->kind, payload ? item->opcode : 0, payload && item->fin, payload ? item->bytes : 0,
                       item->kind >= URS_ITEM_CLOSE ? item->close_code : 0, (uint64_t)(int64_t)item->error};
    string_add(&run->items, head, sizeof head);
    if (payload)
        string_add(&run->items, item->payload, item->bytes);
}

static void note_result(struct run *run, int result)
{
    CHECK(result == 0 || run->delivery->allocation_to_fail != 0);
    run->out_of_memory = run->out_of_memory || result != 0;
}

/* Replies to a message in one of the ways that a handler may choose. */
static void answer_message(struct run *run, struct urs_item *item, uint32_t choice)
{
    static const uint8_t greeting[] = "from the arena";
    unsigned first = (item->fin ? 0x80u : 0u) | item->opcode;
    if (choice % 4 == 0 || run->close_sent) {
        urs_block_drop(item->block);
        return;
    }
    if (choice % 4 == 2 && item->bytes > 0)
        item->payload[item->bytes / 2] ^= 0x5a;
    if (choice % 4 == 3) {
        add_unmasked(&run->expected, 0x80 | URS_OPCODE_BINARY, greeting, sizeof greeting);
        note_result(run, urs_outbound_frame(&run->outbox, &run->outbound, URS_OPCODE_BINARY, true, greeting,
                                            sizeof greeting));
    }
    add_unmasked(&run->expected, first, item->payload, item->bytes);
    note_result(run, urs_outbound_echo(&run->outbox, &run->outbound, item, item->opcode, item->fin));
}

static void expect_reply(struct run *run, const struct urs_item *item)
{
    uint8_t close[2 + URS_FRAME_CONTROL_BYTES_MAX] = {(uint8_t)(item->close_code >> 8), (uint8_t)item->close_code};
    size_t bytes = item->close_code == URS_CLOSE_NO_STATUS ? 0 : 2;
    if (item->kind == URS_ITEM_PING)
        add_unmasked(&run->expected, 0x8A, item->payload, item->bytes);
    if (item->kind == URS_ITEM_FAILED) {
        const char *text = urs_engine_error_text(item->error);
        memcpy(close + 2, text, strlen(text));
        bytes = 2 + strlen(text);
    }
    if (item->kind == URS_ITEM_CLOSE || item->kind == URS_ITEM_FAILED)
        add_unmasked(&run->expected, 0x88, close, bytes);
}

/* Takes frames that are replies already, one by one. */
static void on_answers(struct run *run, struct urs_item *item)
{
    const uint8_t *end = item->payload + item->bytes;
    CHECK(item->count > 0 && item->block == NULL);
    for (uint8_t *frame = item->payload; frame < end; frame += 2 + frame[1]) {
        const struct urs_item message = {
            .kind = run->delivery->rules->frames ? URS_ITEM_FRAME : URS_ITEM_MESSAGE, .opcode = frame[0] & 0xf,
            .fin = frame[0] >> 7, .payload = frame + 2, .bytes = frame[1]};
        CHECK(frame[1] <= URS_FRAME_CONTROL_BYTES_MAX && frame + 2 + frame[1] <= end && item->count-- > 0);
        check_item(run, &message);
        record_item(run, &message);
        add_unmasked(&run->expected, frame[0], message.payload, message.bytes);
    }
    CHECK(item->count == 0);
}

static void on_item(struct run *run, struct urs_item *item, uint32_t *seed)
{
    if (item->kind == URS_ITEM_ECHO_RUN) {
        struct urs_item answers = *item;
        on_answers(run, &answers);
        note_result(run, urs_outbound_echo_run(&run->outbox, &run->outbound, item));
        return;
    }
    check_item(run, item);
    record_item(run, item);
    uint32_t choice = run->delivery->echo ? 1 : next_number(seed);
    if (item->kind == URS_ITEM_MESSAGE || item->kind == URS_ITEM_FRAME) {
        answer_message(run, item, choice);
        return;
    }
    expect_reply(run, item);
    run->close_sent = item->kind == URS_ITEM_CLOSE || item->kind == URS_ITEM_FAILED;
    note_result(run, urs_outbound_reply(&run->outbox, &run->outbound, item));
    CHECK(item->block == NULL);
}

/* Does the work of a reactor at the end of a turn. */
static void flush(struct run *run)
{
    size_t bytes = 0;
    uint32_t last = 0;
    for (uint32_t index = run->outbound.first; index != 0; index = run->outbox.segments[index - 1].next) {
        const struct urs_segment *segment = &run->outbox.segments[index - 1];
        string_add(&run->sent, segment->data, segment->bytes);
        bytes += segment->bytes;
        last = index;
    }
    CHECK(bytes == run->outbound.bytes && last == run->outbound.last);
    urs_outbound_clear(&run->outbox, &run->outbound);
    urs_outbox_reset(&run->outbox);
}

static void check_memory(const struct run *run)
{
    size_t used = run->memory.bytes_used;
    size_t max = run->memory.bytes_max;
    size_t held = urs_engine_partial_bytes(&run->engine);
    CHECK(max == 0 || used <= max);
    CHECK(used <= GROWTH * run->fed + BLOCK_OVERHEAD_BYTES);
    CHECK(held <= run->fed && held <= run->delivery->rules->message_bytes_max + URS_FRAME_HEADER_BYTES_MAX
              + URS_FRAME_CONTROL_BYTES_MAX);
    CHECK(run->engine.phase != URS_ENGINE_ENDED || (held == 0 && used == 0));
}

static int next_item(struct run *run, struct urs_input *input, struct urs_item *item)
{
    const struct urs_engine_rules *rules = run->delivery->rules;
    const uint8_t *before = input->next;
    int kind = run->delivery->echo ? urs_engine_echo(&run->engine, rules, input, item) : URS_ITEM_NONE;
    CHECK(kind == URS_ITEM_ECHO_RUN || input->next == before);
    return kind != URS_ITEM_NONE ? kind : urs_engine_next(&run->engine, rules, &run->memory, input, item);
}

static void feed(struct run *run, const uint8_t *data, size_t bytes, uint32_t *seed)
{
    uint8_t *copy = exact_copy(data, bytes);
    struct urs_input input = {.next = copy, .end = copy + bytes};
    struct urs_item item;
    bool ended = run->engine.phase == URS_ENGINE_ENDED;
    int kind;
    run->fed += bytes;
    while ((kind = next_item(run, &input, &item)) != URS_ITEM_NONE) {
        CHECK(!ended && kind == item.kind);
        ended = kind == URS_ITEM_CLOSE || kind == URS_ITEM_FAILED;
        CHECK(ended == (run->engine.phase == URS_ENGINE_ENDED));
        on_item(run, &item, seed);
    }
    CHECK(input.next == input.end && item.block == NULL);
    flush(run);
    check_memory(run);
    free(copy);
}

static void deliver(struct run *run, const struct delivery *delivery, const struct string *stream)
{
    uint32_t chunk_seed = delivery->answer_seed;
    uint32_t answer_seed = delivery->answer_seed;
    *run = (struct run){.delivery = delivery, .memory.bytes_max = delivery->memory_bytes_max};
    allocations_left = delivery->allocation_to_fail;
    for (size_t at = 0; at < stream->bytes;) {
        size_t left = stream->bytes - at;
        size_t bytes = left;
        if (delivery->chunk_log2 != 255)
            bytes = stream->bytes / CHUNKS_MAX + 1 + next_number(&chunk_seed) % (1u << delivery->chunk_log2);
        bytes = bytes < left ? bytes : left;
        feed(run, stream->data + at, bytes, &answer_seed);
        at += bytes;
    }
    allocations_left = 0;
    urs_engine_clear(&run->engine);
    CHECK(run->memory.bytes_used == 0);
    CHECK(urs_engine_partial_bytes(&run->engine) == 0);
    urs_outbox_clear(&run->outbox);
    urs_memory_clear(&run->memory);
    CHECK(run->out_of_memory || strings_equal(&run->sent, &run->expected));
}

static void forget(struct run *run)
{
    string_free(&run->items);
    string_free(&run->sent);
    string_free(&run->expected);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input input = {.next = data, .end = data + bytes};
    uint8_t flags = take_byte(&input);
    uint8_t limit = take_byte(&input);
    const struct urs_engine_rules rules = {
        .message_bytes_max = (UINT64_C(1) << (limit & 31)) + (limit >> 5),
        .frames = flags & 1, .refuse_text = (flags & 6) == 2, .refuse_binary = (flags & 6) == 4};
    struct delivery whole = {.rules = &rules, .answer_seed = take_16(&input), .chunk_log2 = 255};
    struct delivery chunked = whole;
    chunked.chunk_log2 = take_byte(&input) % 17;
    struct delivery failing = chunked;
    failing.memory_bytes_max = (size_t)take_16(&input) * 16;
    failing.allocation_to_fail = take_byte(&input);

    struct string stream = {0};
    uint32_t key_seed = whole.answer_seed;
    if (flags & 8)
        string_add(&stream, input.next, input_left(&input));
    else
        while (input_left(&input) > 0 && stream.bytes < STREAM_BYTES_MAX)
            add_record(&stream, &input, &key_seed);

    struct run first;
    struct run second;
    deliver(&first, &whole, &stream);
    deliver(&second, &chunked, &stream);
    CHECK(strings_equal(&first.items, &second.items));
    CHECK(strings_equal(&first.sent, &second.sent));
    forget(&second);
    struct delivery echoed = chunked;
    echoed.echo = true;
    deliver(&second, &echoed, &stream);
    CHECK(strings_equal(&first.items, &second.items));
    forget(&second);
    deliver(&second, &failing, &stream);
    forget(&second);
    forget(&first);
    string_free(&stream);
    return 0;
}
