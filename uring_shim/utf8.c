/* UTF-8 validation by an automaton of nine states, with a skip over runs of ASCII. The automaton alone decides what is
 * good and which byte is the bad one; whatever is faster only passes over bytes it has proved good. */
#include "utf8.h"

#include <string.h>

/* The states, named by what is awaited. Each is the place of its 6 bits in a row of the table, and a row holds for one
 * byte the next state of every state: next = row >> state & 63. One shift per byte, no branch, and only the shift
 * depends on the byte before. (Per Vognsen's shift-based automaton.) */
enum {
    START = 0,
    REJECT = 6,
    ONE = 12,      /* one continuation byte, 80..BF */
    TWO = 18,
    THREE = 24,
    TWO_E0 = 30,   /* two, the first of them A0..BF: less is overlong */
    TWO_ED = 36,   /* two, the first of them 80..9F: more is a surrogate */
    THREE_F0 = 42, /* three, the first of them 90..BF: less is overlong */
    THREE_F4 = 48, /* three, the first of them 80..8F: more is above U+10FFFF */
    STATE_MASK = 63
};

#define NEXT(state, next) ((uint64_t)(next) << (state))

/* REJECT everywhere but where a state says otherwise (XOR lifts the default out). */
#define ROW_REJECT                                                                                                   \
    (NEXT(START, REJECT) | NEXT(REJECT, REJECT) | NEXT(ONE, REJECT) | NEXT(TWO, REJECT) | NEXT(THREE, REJECT) |      \
     NEXT(TWO_E0, REJECT) | NEXT(TWO_ED, REJECT) | NEXT(THREE_F0, REJECT) | NEXT(THREE_F4, REJECT))
#define BUT(state, next) ^ NEXT(state, REJECT ^ (next))
#define ROW_LEAD(next) (ROW_REJECT BUT(START, next))
#define ROW_CONTINUATION (ROW_REJECT BUT(ONE, START) BUT(TWO, ONE) BUT(THREE, TWO))

static const uint64_t rows[256] = {
    [0x00 ... 0x7F] = ROW_LEAD(START),
    [0x80 ... 0x8F] = ROW_CONTINUATION BUT(TWO_ED, ONE) BUT(THREE_F4, TWO),
    [0x90 ... 0x9F] = ROW_CONTINUATION BUT(TWO_ED, ONE) BUT(THREE_F0, TWO),
    [0xA0 ... 0xBF] = ROW_CONTINUATION BUT(TWO_E0, ONE) BUT(THREE_F0, TWO),
    [0xC0 ... 0xC1] = ROW_REJECT,
    [0xC2 ... 0xDF] = ROW_LEAD(ONE),
    [0xE0] = ROW_LEAD(TWO_E0),
    [0xE1 ... 0xEC] = ROW_LEAD(TWO),
    [0xED] = ROW_LEAD(TWO_ED),
    [0xEE ... 0xEF] = ROW_LEAD(TWO),
    [0xF0] = ROW_LEAD(THREE_F0),
    [0xF1 ... 0xF3] = ROW_LEAD(THREE),
    [0xF4] = ROW_LEAD(THREE_F4),
    [0xF5 ... 0xFF] = ROW_REJECT,
};

enum { BLOCK_BYTES = 16 };

static inline uint64_t step(uint64_t state, uint8_t byte) { return rows[byte] >> (state & STATE_MASK); }

/* Byte by byte, looking after each. */
static ptrdiff_t feed_bytes(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes)
{
    uint64_t state = utf8->state;

    for (size_t i = 0; i < bytes; i++) {
        state = step(state, data[i]) & STATE_MASK;
        if (URS_UNLIKELY(state == REJECT))
            return (ptrdiff_t)i;
    }
    utf8->state = (uint32_t)state;
    return -1;
}

static inline bool block_is_ascii(const uint8_t *data)
{
    uint64_t words[BLOCK_BYTES / 8];

    memcpy(words, data, sizeof words);
    return ((words[0] | words[1]) & UINT64_C(0x8080808080808080)) == 0;
}

ptrdiff_t urs_utf8_feed(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes)
{
    uint64_t state = utf8->state;
    size_t i = 0;

    for (; bytes - i >= BLOCK_BYTES; i += BLOCK_BYTES) {
        if (state == START && block_is_ascii(data + i))
            continue;
        uint64_t next = state;
        for (size_t k = 0; k < BLOCK_BYTES; k++)
            next = step(next, data[i + k]);
        next &= STATE_MASK;
        if (URS_UNLIKELY(next == REJECT))
            break; /* REJECT has no way out, so the rejected byte is in this block: feed_bytes finds it */
        state = next;
    }
    utf8->state = (uint32_t)state;
    ptrdiff_t bad = feed_bytes(utf8, data + i, bytes - i);
    return bad < 0 ? bad : (ptrdiff_t)i + bad;
}
