/* Code that the fuzz targets share: reading decisions from an input, streams of frames described by a few bytes, byte
 * strings that grow, and checks that abort. It shares no code with the shim that it tests. */
#ifndef FUZZ_SUPPORT_H
#define FUZZ_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* libFuzzer calls this function. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* ---- checks ---- */

#define CHECK(condition) ((condition) ? (void)0 : fuzz_fail(#condition, __FILE__, __LINE__))

static inline _Noreturn void fuzz_fail(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    abort();
}

/* ---- the input ---- */

/* Decisions are read from the front; past the end every byte reads as zero. */
struct input {
    const uint8_t *next;
    const uint8_t *end;
};

static inline size_t input_left(const struct input *input) { return (size_t)(input->end - input->next); }

static inline uint8_t take_byte(struct input *input) { return input->next < input->end ? *input->next++ : 0; }

static inline uint32_t take_16(struct input *input)
{
    uint32_t high = take_byte(input);
    return high << 8 | take_byte(input);
}

/* Takes at most `*bytes` bytes of the input unchanged; *bytes is set to their number. */
static inline const uint8_t *take_bytes(struct input *input, size_t *bytes)
{
    const uint8_t *taken = input->next;
    if (*bytes > input_left(input))
        *bytes = input_left(input);
    input->next += *bytes;
    return taken;
}

/* Returns the next number of a sequence that depends only on the seed, for code that needs many small decisions. */
static inline uint32_t next_number(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* ---- byte strings ---- */

struct string {
    uint8_t *data;
    size_t bytes;
    size_t room;
};

/* Makes the string longer; returns the address of the new bytes. */
static inline uint8_t *string_extend(struct string *string, size_t bytes)
{
    if (string->room - string->bytes < bytes || string->room == 0) {
        string->room = 2 * (string->bytes + bytes) + 64;
        string->data = realloc(string->data, string->room);
        CHECK(string->data != NULL);
    }
    string->bytes += bytes;
    return string->data + string->bytes - bytes;
}

static inline void string_add(struct string *string, const void *data, size_t bytes)
{
    uint8_t *target = string_extend(string, bytes);
    if (bytes > 0)
        memcpy(target, data, bytes);
}

static inline void string_add_byte(struct string *string, unsigned byte) { *string_extend(string, 1) = (uint8_t)byte; }

static inline void string_free(struct string *string)
{
    free(string->data);
    *string = (struct string){0};
}

static inline bool strings_equal(const struct string *a, const struct string *b)
{
    return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
}

/* Returns a copy that ends where its allocation ends, so that a read past the end is reported. */
static inline uint8_t *exact_copy(const void *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes > 0 ? bytes : 1);
    CHECK(copy != NULL);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    return copy;
}

/* ---- frames, RFC 6455 5.2 ---- */

/* Adds a header with the length in its shortest form; `key` NULL for no mask. */
static inline void add_header(struct string *wire, unsigned first, uint64_t bytes, const uint8_t *key)
{
    unsigned mask = key == NULL ? 0 : 0x80;
    int length_bytes = bytes < 126 ? 0 : bytes < 65536 ? 2 : 8;
    string_add_byte(wire, first);
    string_add_byte(wire, mask | (length_bytes == 0 ? (unsigned)bytes : length_bytes == 2 ? 126 : 127));
    for (int index = length_bytes - 1; index >= 0; index--)
        string_add_byte(wire, (unsigned)(bytes >> (8 * index)));
    if (key != NULL)
        string_add(wire, key, 4);
}

/* Adds a frame as a client sends it. */
static inline void add_masked(struct string *wire, unsigned first, const uint8_t *payload, size_t bytes,
                              const uint8_t key[4])
{
    add_header(wire, first, bytes, key);
    uint8_t *target = string_extend(wire, bytes);
    for (size_t index = 0; index < bytes; index++)
        target[index] = payload[index] ^ key[index & 3];
}

/* Adds a frame as a server sends it. */
static inline void add_unmasked(struct string *wire, unsigned first, const uint8_t *payload, size_t bytes)
{
    add_header(wire, first, bytes, NULL);
    string_add(wire, payload, bytes);
}

enum { RECORD_LITERAL_MAX = 0xF0, RECORD_REPEAT_MAX = 0xFD, RECORD_LIE = 0xFE };

/* Appends the bytes that one record of the input describes: a first byte, a size, a payload. A size up to
 * RECORD_LITERAL_MAX means that many payload bytes follow. A larger size repeats one byte, so that a short input makes
 * a long message. Still larger sizes mean a header with a false length (eight bytes of it), and bytes that are sent
 * unchanged. Keys are derived from `seed`. */
static inline void add_record(struct string *wire, struct input *input, uint32_t *seed)
{
    unsigned first = take_byte(input);
    size_t size = take_byte(input);
    uint32_t number = next_number(seed);
    uint8_t key[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16), (uint8_t)(number ^ first)};
    if (size <= RECORD_LITERAL_MAX) {
        const uint8_t *payload = take_bytes(input, &size);
        add_masked(wire, first, payload, size, key);
    } else if (size <= RECORD_REPEAT_MAX) {
        size_t bytes = (size - RECORD_LITERAL_MAX) * (size - RECORD_LITERAL_MAX) * take_16(input) / 128;
        uint8_t *payload = malloc(bytes + 1);
        CHECK(payload != NULL);
        memset(payload, take_byte(input), bytes);
        add_masked(wire, first, payload, bytes, key);
        free(payload);
    } else if (size == RECORD_LIE) {
        uint64_t length = (uint64_t)take_16(input) << 48 | (uint64_t)take_16(input) << 32 | (uint64_t)take_16(input) << 16;
        add_header(wire, first, length | take_16(input), key);
    } else {
        size_t bytes = take_byte(input);
        const uint8_t *raw = take_bytes(input, &bytes);
        string_add(wire, raw, bytes);
    }
}

#endif
