/* UTF-8 validation: an automaton of nine states finds the exact invalid byte. In front of it, a check of whole vectors
 * skips bytes that it proves valid. */
#include "utf8.h"

#include <errno.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* The states, named by the bytes that are awaited. The value of a state is the position of its 6 bits in a row of the
 * table. A row holds, for one byte, the next state of every state: next = row >> state & 63. This costs one shift per
 * byte and no branch, and only the shift depends on the byte before. (Per Vognsen's shift-based automaton.) */
enum {
    START = 0,
    REJECT = 6,
    ONE = 12,      /* one continuation byte, 80..BF */
    TWO = 18,
    THREE = 24,
    TWO_E0 = 30,   /* two bytes, the first of them A0..BF: a lower one is overlong */
    TWO_ED = 36,   /* two bytes, the first of them 80..9F: a higher one is a surrogate */
    THREE_F0 = 42, /* three bytes, the first of them 90..BF: a lower one is overlong */
    THREE_F4 = 48, /* three bytes, the first of them 80..8F: a higher one is above U+10FFFF */
    STATE_MASK = 63
};

#define NEXT(state, next) ((uint64_t)(next) << (state))

/* REJECT everywhere except where a state says otherwise (XOR removes the default). */
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

static inline uint64_t step(uint64_t state, uint8_t byte) { return rows[byte] >> (state & STATE_MASK); }

enum { BLOCK_BYTES = 16, WIDE_BYTES = 64 };

/* `bytes` is a constant multiple of 8, so that the compiler can use the best instructions of the target for the
 * loop. */
static inline bool is_ascii(const uint8_t *data, size_t bytes)
{
    uint64_t seen = 0;

    for (size_t i = 0; i < bytes; i += sizeof seen) {
        uint64_t word;
        memcpy(&word, data + i, sizeof word);
        seen |= word;
    }
    return (seen & UINT64_C(0x8080808080808080)) == 0;
}

/* Does the whole work of urs_utf8_feed with the automaton alone. */
static ptrdiff_t feed_automaton(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes)
{
    uint64_t state = utf8->state;
    size_t i = 0;

    for (; bytes - i >= BLOCK_BYTES; i += BLOCK_BYTES) {
        if (state == START && is_ascii(data + i, BLOCK_BYTES))
            continue;
        uint64_t next = state;
        for (size_t k = 0; k < BLOCK_BYTES; k++)
            next = step(next, data[i + k]);
        next &= STATE_MASK;
        if (URS_UNLIKELY(next == REJECT))
            break; /* no state follows REJECT, so the invalid byte is in this block: it is found below */
        state = next;
    }
    for (; i < bytes; i++) {
        state = step(state, data[i]) & STATE_MASK;
        if (URS_UNLIKELY(state == REJECT))
            return (ptrdiff_t)i;
    }
    utf8->state = (uint32_t)state;
    return -1;
}

/* The vector check: J. Keiser and D. Lemire, "Validating UTF-8 in less than one instruction per byte", 2020, section 6.
 * Table lookups decide for a whole vector at once whether each byte may follow the three bytes in front of it. The
 * check needs these three bytes in memory and no state, so blocks may overlap. */

/* The errors that two neighbouring bytes can have, one bit each. Three tables say which errors are possible: one for
 * the high half of the first byte, one for its low half, one for the high half of the second byte. The pair is wrong if
 * a bit is set in all three. */
enum {
    TOO_SHORT = 1 << 0,      /* 11______ 0_______ or 11______ 11______ */
    TOO_LONG = 1 << 1,       /* 0_______ 10______ */
    OVERLONG_3 = 1 << 2,     /* 11100000 100_____ */
    TOO_LARGE = 1 << 3,      /* 11110100 1001____ and above */
    SURROGATE = 1 << 4,      /* 11101101 101_____ */
    OVERLONG_2 = 1 << 5,     /* 1100000_ 10______ */
    TOO_LARGE_1000 = 1 << 6, /* 11110101 1000____ and above */
    OVERLONG_4 = 1 << 6,     /* 11110000 1000____; it can share a bit with the one above, because the first bytes
                                differ */
    CONTINUED = 1 << 7,      /* 10______ 10______: valid or not, depending on the bytes in front */
    ANY_LOW_HALF = TOO_SHORT | TOO_LONG | CONTINUED,
    ANY_CONTINUATION = TOO_LONG | OVERLONG_2 | CONTINUED
};

static const uint8_t first_high[16] = {
    [0x0 ... 0x7] = TOO_LONG,
    [0x8 ... 0xB] = CONTINUED,
    [0xC] = TOO_SHORT | OVERLONG_2,
    [0xD] = TOO_SHORT,
    [0xE] = TOO_SHORT | OVERLONG_3 | SURROGATE,
    [0xF] = TOO_SHORT | TOO_LARGE | TOO_LARGE_1000 | OVERLONG_4,
};

static const uint8_t first_low[16] = {
    [0x0] = ANY_LOW_HALF | OVERLONG_2 | OVERLONG_3 | OVERLONG_4,
    [0x1] = ANY_LOW_HALF | OVERLONG_2,
    [0x2 ... 0x3] = ANY_LOW_HALF,
    [0x4] = ANY_LOW_HALF | TOO_LARGE,
    [0x5 ... 0xC] = ANY_LOW_HALF | TOO_LARGE | TOO_LARGE_1000,
    [0xD] = ANY_LOW_HALF | TOO_LARGE | TOO_LARGE_1000 | SURROGATE,
    [0xE ... 0xF] = ANY_LOW_HALF | TOO_LARGE | TOO_LARGE_1000,
};

static const uint8_t second_high[16] = {
    [0x0 ... 0x7] = TOO_SHORT,
    [0x8] = ANY_CONTINUATION | OVERLONG_3 | OVERLONG_4 | TOO_LARGE_1000,
    [0x9] = ANY_CONTINUATION | OVERLONG_3 | TOO_LARGE,
    [0xA ... 0xB] = ANY_CONTINUATION | SURROGATE | TOO_LARGE,
    [0xC ... 0xF] = TOO_SHORT,
};

/* The few operations that the compiler's vector operators cannot express. */
#if defined(__x86_64__)
#define VECTOR_NAME "avx2"
#define VECTOR_FUNCTION static inline __attribute__((target("avx2")))

typedef uint8_t vector __attribute__((vector_size(32)));

VECTOR_FUNCTION vector load(const uint8_t *data) { return (vector)_mm256_loadu_si256((const void *)data); }

VECTOR_FUNCTION vector load_table(const uint8_t *table)
{
    return (vector)_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
}

VECTOR_FUNCTION vector lookup(vector table, vector index)
{
    return (vector)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
}

VECTOR_FUNCTION vector subtract_saturated(vector a, vector b)
{
    return (vector)_mm256_subs_epu8((__m256i)a, (__m256i)b);
}

VECTOR_FUNCTION bool any_not_ascii(vector v) { return _mm256_movemask_epi8((__m256i)v) != 0; }
VECTOR_FUNCTION bool any_not_zero(vector v) { return !_mm256_testz_si256((__m256i)v, (__m256i)v); }

static bool vectors_run_here(void) { return __builtin_cpu_supports("avx2"); }

#elif defined(__aarch64__)
#define VECTOR_NAME "neon"
#define VECTOR_FUNCTION static inline

typedef uint8x16_t vector;

VECTOR_FUNCTION vector load(const uint8_t *data) { return vld1q_u8(data); }
VECTOR_FUNCTION vector load_table(const uint8_t *table) { return vld1q_u8(table); }
VECTOR_FUNCTION vector lookup(vector table, vector index) { return vqtbl1q_u8(table, index); }
VECTOR_FUNCTION vector subtract_saturated(vector a, vector b) { return vqsubq_u8(a, b); }
VECTOR_FUNCTION bool any_not_ascii(vector v) { return vmaxvq_u8(v) >= 0x80; }
VECTOR_FUNCTION bool any_not_zero(vector v) { return vmaxvq_u8(v) != 0; }

static bool vectors_run_here(void) { return true; }
#endif

#if defined(VECTOR_NAME)

enum { LOOKBACK_BYTES = 3, VECTOR_BYTES = sizeof(vector) };

/* Returns a vector that is not zero at each of the VECTOR_BYTES bytes at `data` that may not follow the LOOKBACK_BYTES
 * bytes in front of it. */
VECTOR_FUNCTION vector errors_at(const uint8_t *data)
{
    vector now = load(data);
    vector before_1 = load(data - 1);
    vector before_2 = load(data - 2);
    vector before_3 = load(data - 3);
    vector pair = lookup(load_table(first_high), before_1 >> 4) & lookup(load_table(first_low), before_1 & 0x0F) &
                  lookup(load_table(second_high), now >> 4);
    /* A lead byte of a sequence of three or more (E0..) two places back, or of four (F0..) three places back, leaves
     * bit 7 set: only there a continuation must follow a continuation. */
    vector third = subtract_saturated(before_2, (vector){0} + (0xE0 - 0x80));
    vector fourth = subtract_saturated(before_3, (vector){0} + (0xF0 - 0x80));

    return pair ^ ((third | fourth) & CONTINUED);
}

/* Checks from data[LOOKBACK_BYTES] to the end, at least VECTOR_BYTES bytes. Returns `bytes`, or an index such that
 * every byte in front of it is valid. */
VECTOR_FUNCTION size_t good_bytes(const uint8_t *data, size_t bytes)
{
    size_t i = LOOKBACK_BYTES;

    for (; i + 2 * VECTOR_BYTES <= bytes; i += 2 * VECTOR_BYTES) {
        /* The bytes in front are checked too: otherwise a code point cut short by ASCII would pass. */
        if (!any_not_ascii(load(data + i - LOOKBACK_BYTES) | load(data + i) | load(data + i + VECTOR_BYTES)))
            continue;
        if (any_not_zero(errors_at(data + i) | errors_at(data + i + VECTOR_BYTES)))
            return i;
    }
    if (i + VECTOR_BYTES <= bytes && any_not_zero(errors_at(data + i)))
        return i;
    return any_not_zero(errors_at(data + bytes - VECTOR_BYTES)) ? i : bytes;
}

/* Returns the start of the code point that contains data[i - 1]. It is at most four bytes back, because every byte up
 * to i has been checked. */
static size_t code_point_before(const uint8_t *data, size_t i)
{
    do
        i--;
    while ((data[i] & 0xC0) == 0x80);
    return i;
}

/* The automaton checks the first bytes, because their code point may have begun in the previous chunk, and the last
 * code point, because it may be incomplete. The vectors check the bytes in between. At their first error the automaton
 * takes over, one code point earlier, because the vectors notice a byte that is never valid (C0, F5) only together with
 * the next byte. */
static ptrdiff_t feed_vectors(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes)
{
    if (bytes < LOOKBACK_BYTES + VECTOR_BYTES)
        return feed_automaton(utf8, data, bytes);

    ptrdiff_t bad = feed_automaton(utf8, data, LOOKBACK_BYTES);
    if (URS_UNLIKELY(bad >= 0))
        return bad;
    size_t from = good_bytes(data, bytes);
    if (from > LOOKBACK_BYTES) {
        from = code_point_before(data, from);
        utf8->state = START;
    }
    bad = feed_automaton(utf8, data + from, bytes - from);
    return bad < 0 ? bad : (ptrdiff_t)from + bad;
}

#endif

static ptrdiff_t (*selected)(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes) = feed_automaton;

/* Returns the number of ASCII bytes at the start, rounded down to whole blocks. */
static inline size_t ascii_bytes(const uint8_t *data, size_t bytes)
{
    size_t i = 0;

    if (bytes < BLOCK_BYTES)
        return 0;
    while (bytes - i >= WIDE_BYTES && is_ascii(data + i, WIDE_BYTES))
        i += WIDE_BYTES;
    while (bytes - i >= BLOCK_BYTES && is_ascii(data + i, BLOCK_BYTES))
        i += BLOCK_BYTES;
    /* If less than a block is left, the last BLOCK_BYTES of the text cover it. */
    return bytes - i < BLOCK_BYTES && is_ascii(data + bytes - BLOCK_BYTES, BLOCK_BYTES) ? bytes : i;
}

/* Most texts are short and pure ASCII: they are finished here. */
ptrdiff_t urs_utf8_feed(struct urs_utf8 *utf8, const uint8_t *data, size_t bytes)
{
    size_t from = utf8->state == START ? ascii_bytes(data, bytes) : 0;

    if (from == bytes)
        return -1;
    ptrdiff_t bad = selected(utf8, data + from, bytes - from);
    return bad < 0 ? bad : (ptrdiff_t)from + bad;
}

int urs_utf8_select(const char *name)
{
    bool automatic = strcmp(name, "auto") == 0;

#if defined(VECTOR_NAME)
    if (automatic || strcmp(name, VECTOR_NAME) == 0) {
        if (vectors_run_here()) {
            selected = feed_vectors;
            return 0;
        }
        if (!automatic)
            return -ENOTSUP;
    }
#endif
    if (!automatic && strcmp(name, "automaton") != 0)
        return -EINVAL;
    selected = feed_automaton;
    return 0;
}

/* Runs when the library is loaded, so that no call must check whether an implementation has been chosen. */
__attribute__((constructor)) static void initialize(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    urs_utf8_select("auto");
}
