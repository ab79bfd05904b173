/* Fuzzes the leaves: frame headers, UTF-8, masking, the ends of heads. Each is compared with a simple implementation of
 * its standard in this file, and its implementations are compared with each other, on memory that ends where the data
 * ends.
 *
 * The input consists of four bytes of decisions, then the data. */
#include "frame.h"
#include "head.h"
#include "mask.h"
#include "support.h"
#include "utf8.h"

/* ---- headers, RFC 6455 5.2 ---- */

/* Returns the payload length in a complete header. */
static uint64_t announced(const uint8_t *data)
{
    unsigned length = data[1] & 0x7F;
    int length_bytes = length < 126 ? 0 : length == 126 ? 2 : 8;
    uint64_t value = length_bytes == 0 ? length : 0;
    for (int index = 0; index < length_bytes; index++)
        value = value << 8 | data[2 + index];
    return value;
}

static bool breaks_a_rule(const uint8_t *data, int rules)
{
    bool control = (data[0] & 0x08) != 0;
    unsigned opcode = data[0] & 0x0F;
    unsigned rsv = data[0] & 0x70;
    bool masked = (data[1] & 0x80) != 0;
    unsigned length = data[1] & 0x7F;
    if ((rules & URS_FRAME_RSV1_ALLOWED) && (opcode == 1 || opcode == 2))
        rsv &= 0x30;
    return rsv != 0 || (opcode > 2 && opcode < 8) || opcode > 10
        || (control && ((data[0] & 0x80) == 0 || length > 125))
        || ((rules & URS_FRAME_FROM_CLIENT) && !masked) || ((rules & URS_FRAME_FROM_SERVER) && masked)
        || (length == 126 && announced(data) < 126) || (length == 127 && announced(data) < 65536)
        || (length == 127 && announced(data) >> 63 != 0);
}

/* Parses the same bytes, cut short at each position: the result must be the same as for the whole header, or
 * "incomplete". */
static void check_cuts(const uint8_t *data, size_t bytes, int rules, int whole)
{
    for (size_t cut = 0; cut < bytes; cut++) {
        struct urs_frame_header header;
        uint8_t *copy = exact_copy(data, cut);
        int result = urs_frame_parse(copy, cut, rules, &header);
        CHECK(result == whole || result == 0);
        if (result == 0)
            CHECK(header.header_bytes > cut && (whole <= 0 || header.header_bytes <= whole));
        free(copy);
    }
}

static void check_header(const uint8_t *data, size_t bytes, int rules)
{
    struct urs_frame_header header;
    bytes = bytes < URS_FRAME_HEADER_BYTES_MAX ? bytes : URS_FRAME_HEADER_BYTES_MAX;
    uint8_t *copy = exact_copy(data, bytes);
    int result = urs_frame_parse(copy, bytes, rules, &header);
    check_cuts(copy, bytes, rules, result);
    if (bytes == URS_FRAME_HEADER_BYTES_MAX)
        CHECK(result < 0 ? breaks_a_rule(copy, rules) : result > 0 && !breaks_a_rule(copy, rules));
    if (result > 0) {
        uint8_t written[URS_FRAME_ANSWER_BYTES_MAX];
        struct urs_frame_header again;
        int size = (int)urs_frame_write(written, header.opcode, header.fin, header.payload_bytes);
        CHECK(header.payload_bytes == announced(copy) && header.masked == (copy[1] >> 7));
        CHECK(result == size + (header.masked ? 4 : 0) && result == header.header_bytes);
        CHECK(!header.masked || memcmp(header.masking_key, copy + size, 4) == 0);
        CHECK((size_t)size == urs_frame_answer_bytes(header.payload_bytes));
        CHECK(written[0] == (copy[0] & 0x8F) && written[1] == (copy[1] & 0x7F));
        CHECK(urs_frame_parse(written, (size_t)size, URS_FRAME_FROM_SERVER, &again) == size);
        CHECK(again.payload_bytes == header.payload_bytes && again.fin == header.fin);
    }
    free(copy);
}

/* ---- UTF-8, RFC 3629 ---- */

/* Returns the code point that begins at `data`; 0 if it continues past the end; or a negative number, whose complement
 * is the index of the byte that is invalid. */
static int code_point(const uint8_t *data, size_t bytes)
{
    uint8_t lead = data[0];
    int size = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (size == 0)
        return ~0;
    for (int index = 1; index < size; index++) {
        if ((size_t)index == bytes)
            return 0;
        uint8_t low = index == 1 && lead == 0xE0 ? 0xA0 : index == 1 && lead == 0xF0 ? 0x90 : 0x80;
        uint8_t high = index == 1 && lead == 0xED ? 0x9F : index == 1 && lead == 0xF4 ? 0x8F : 0xBF;
        if (data[index] < low || data[index] > high)
            return ~index;
    }
    return size;
}

/* Returns the index of the first invalid byte, or -1; *complete says whether the text may end there. */
static ptrdiff_t first_bad(const uint8_t *data, size_t bytes, bool *complete)
{
    *complete = true;
    for (size_t at = 0; at < bytes;) {
        int size = code_point(data + at, bytes - at);
        if (size < 0)
            return (ptrdiff_t)at + ~size;
        if (size == 0) {
            *complete = false;
            return -1;
        }
        at += (size_t)size;
    }
    return -1;
}

static void check_utf8(const uint8_t *data, size_t bytes, const char *implementation, uint32_t seed, uint32_t chunk_max)
{
    bool complete;
    ptrdiff_t bad = first_bad(data, bytes, &complete);
    struct urs_utf8 utf8 = {0};
    if (urs_utf8_select(implementation) != 0)
        return;
    for (size_t at = 0; at < bytes;) {
        size_t size = chunk_max == 0 ? bytes : 1 + next_number(&seed) % chunk_max;
        size = size < bytes - at ? size : bytes - at;
        uint8_t *copy = exact_copy(data + at, size);
        ptrdiff_t result = urs_utf8_feed(&utf8, copy, size);
        free(copy);
        if (result >= 0) {
            CHECK((ptrdiff_t)at + result == bad);
            return;
        }
        at += size;
        CHECK(bad < 0 || (ptrdiff_t)at <= bad);
    }
    CHECK(bad < 0 && urs_utf8_complete(&utf8) == complete);
}

/* ---- masking, RFC 6455 5.3 ---- */

/* Moves `data` down by `distance` bytes, or in place (distance 0), or to separate memory (SIZE_MAX). */
static void check_mask(const uint8_t *data, size_t bytes, const uint8_t key[4], size_t offset, size_t distance)
{
    size_t lead = distance == SIZE_MAX ? 0 : distance;
    uint8_t *memory = malloc(lead + bytes + 1);
    uint8_t *apart = malloc(bytes + 1);
    CHECK(memory != NULL && apart != NULL);
    uint8_t *source = memory + lead + 1;  /* its end is the end of the allocation */
    memset(memory, 0xEE, lead + 1);
    if (bytes > 0)
        memcpy(source, data, bytes);
    uint8_t *target = distance == SIZE_MAX ? apart + 1 : source - lead;
    urs_mask_move(target, source, bytes, key, offset);
    for (size_t index = 0; index < bytes; index++)
        CHECK(target[index] == (data[index] ^ key[(offset + index) & 3]));
    CHECK(memory[0] == 0xEE);
    free(apart);
    free(memory);
}

/* ---- heads, RFC 9112 2.2 and 3 ---- */

/* The result must be the same byte by byte and in one piece, for any number of bytes seen before. */
static void check_head(const uint8_t *data, size_t bytes, bool proxy_protocol, size_t chunk_max)
{
    const struct urs_head_rules rules = {.bytes_max = 256, .proxy_protocol = proxy_protocol};
    size_t seen = 0;
    for (size_t at = 0; at < bytes;) {
        at = bytes - at > chunk_max ? at + chunk_max : bytes;
        uint8_t *copy = exact_copy(data, at);
        int64_t found = urs_head_find(copy, at, seen, &rules);
        CHECK(found == urs_head_find(copy, at, 0, &rules));
        free(copy);
        CHECK(found <= (int64_t)urs_min(at, rules.bytes_max) && (found != 0 || at <= rules.bytes_max));
        if (found > 0)
            CHECK(memcmp(data + found - 4, "\r\n\r\n", 4) == 0 && (size_t)found > seen);
        if (found != 0)
            return;
        seen = at;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input input = {.next = data, .end = data + bytes};
    uint8_t rules = take_byte(&input) & 7;
    uint32_t seed = take_byte(&input);
    uint8_t offset = take_byte(&input);
    uint8_t distance = take_byte(&input);
    size_t left = input_left(&input);
    const uint8_t key[4] = {(uint8_t)(seed * 7 + 1), (uint8_t)~seed, offset, distance};

    if ((rules & 3) != 3)
        check_header(input.next, left, rules);
    check_head(input.next, left, rules & 4, 1);
    check_head(input.next, left, rules & 4, 1u + distance);
    static const char *const checkers[] = {"automaton", "avx2", "neon"};
    for (size_t index = 0; index < sizeof checkers / sizeof *checkers; index++) {
        check_utf8(input.next, left, checkers[index], seed, 0);
        check_utf8(input.next, left, checkers[index], seed, 1);
        check_utf8(input.next, left, checkers[index], seed, 2u + distance);
    }
    const char *name;
    for (size_t index = 0; (name = urs_mask_available(index)) != NULL; index++) {
        CHECK(urs_mask_select(name) == 0 && strcmp(urs_mask_selected(), name) == 0);
        check_mask(input.next, left, key, offset, 0);
        check_mask(input.next, left, key, offset, distance);
        check_mask(input.next, left, key, offset, SIZE_MAX);
    }
    return 0;
}
