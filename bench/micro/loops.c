/* Only loops and a clock: they call the shim's own sources, compiled beside this file. */
#include "loops.h"

#include "clock.h"
#include "engine.h"
#include "frame.h"
#include "mask.h"
#include "outbound.h"
#include "utf8.h"

#include <string.h>

/* Tells the compiler that memory may have changed, so that it can neither move a call out of its loop nor remove it. */
#define BARRIER() __asm__ volatile("" ::: "memory")

/* Called through a pointer whose value the compiler cannot know: otherwise it would replace memcpy by its own code. */
static void *(*volatile library_memcpy)(void *, const void *, size_t) = memcpy;

int64_t loop_memcpy(const struct loop_payloads *payloads, size_t repeats)
{
    void *(*copy)(void *, const void *, size_t) = library_memcpy;
    struct loop_payloads p = *payloads;
    int64_t start = now();

    for (size_t i = 0; i < repeats; i++) {
        for (size_t k = 0; k < p.count; k++)
            copy(p.target + k * p.stride, p.source + k * p.stride, p.bytes);
        BARRIER();
    }
    return now() - start;
}

int64_t loop_mask(const struct loop_payloads *payloads, size_t repeats)
{
    static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d}; /* the example of RFC 6455 5.7 */
    struct loop_payloads p = *payloads;
    int64_t start = now();

    for (size_t i = 0; i < repeats; i++) {
        for (size_t k = 0; k < p.count; k++)
            urs_mask_move(p.target + k * p.stride, p.source + k * p.stride, p.bytes, key, 0);
        BARRIER();
    }
    return now() - start;
}

int64_t loop_utf8(const uint8_t *text, size_t bytes, size_t repeats)
{
    int64_t start = now();

    for (size_t i = 0; i < repeats; i++) {
        struct urs_utf8 utf8 = {0};
        if (urs_utf8_feed(&utf8, text, bytes) >= 0 || !urs_utf8_complete(&utf8))
            return -1;
        BARRIER();
    }
    return now() - start;
}

int64_t loop_headers(const uint8_t *frames, size_t bytes, size_t repeats)
{
    int64_t start = now();

    for (size_t i = 0; i < repeats; i++) {
        size_t at = 0;
        while (at < bytes) {
            struct urs_frame_header header;
            int header_bytes = urs_frame_parse(frames + at, bytes - at, URS_FRAME_FROM_CLIENT, &header);
            if (header_bytes <= 0)
                return -1;
            at += (size_t)header_bytes + header.payload_bytes;
        }
        BARRIER();
    }
    return now() - start;
}

static void receive(const struct loop_reads *r)
{
    void *(*copy)(void *, const void *, size_t) = library_memcpy;

    for (size_t i = 0; i < r->reads; i++)
        for (size_t k = 0; k < r->frames; k++)
            copy(r->buffers + i * r->stride + k * r->frame_bytes, r->frame, r->frame_bytes);
    BARRIER();
}

int64_t loop_receive(const struct loop_reads *reads, size_t repeats)
{
    struct loop_reads r = *reads;
    int64_t start = now();

    for (size_t i = 0; i < repeats; i++)
        receive(&r);
    return now() - start;
}

/* The state of a thread: its connections, and the memory that they share. */
struct thread {
    struct urs_engine engines[LOOP_CONNECTIONS];
    struct urs_outbound outbounds[LOOP_CONNECTIONS];
    struct urs_engine_rules rules;
    struct urs_memory memory;
    struct urs_outbox outbox;
};

/* Runs one read for each of `count` connections. Returns how many bytes must then be sent, or 0 if a frame was
 * refused. */
static size_t turn(struct thread *thread, const struct loop_reads *r, uint8_t *buffer, size_t count)
{
    size_t bytes = 0;

    for (size_t i = 0; i < count; i++, buffer += r->stride) {
        struct urs_input input = {.next = buffer, .end = buffer + r->frames * r->frame_bytes};
        struct urs_item item;
        while (urs_engine_next(&thread->engines[i], &thread->rules, &thread->memory, &input, &item) != URS_ITEM_NONE)
            if (item.kind != URS_ITEM_MESSAGE
                || urs_outbound_echo(&thread->outbox, &thread->outbounds[i], &item, item.opcode, item.fin) != 0)
                return 0;
    }
    for (size_t i = 0; i < count; i++) {
        bytes += thread->outbounds[i].bytes;
        urs_outbound_clear(&thread->outbox, &thread->outbounds[i]);
    }
    urs_outbox_reset(&thread->outbox);
    return bytes;
}

int64_t loop_engine(const struct loop_reads *reads, size_t repeats)
{
    struct loop_reads r = *reads;
    struct thread thread = {.rules = {.message_bytes_max = 16 << 20}};
    int64_t nanoseconds = 0;
    bool refused = false;

    for (size_t i = 0; i < repeats; i++) {
        receive(&r);
        int64_t start = now();
        for (size_t k = 0; k < r.reads; k += LOOP_CONNECTIONS) {
            size_t count = urs_min(r.reads - k, LOOP_CONNECTIONS);
            refused |= turn(&thread, &r, r.buffers + k * r.stride, count) != count * r.frames * r.answer_bytes;
        }
        nanoseconds += now() - start;
    }
    urs_outbox_clear(&thread.outbox);
    urs_memory_clear(&thread.memory);
    return refused ? -1 : nanoseconds;
}
