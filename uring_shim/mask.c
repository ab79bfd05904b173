/* Masking: one loop over words, compiled once for each word size the CPU families offer, and a branch for payloads too
 * short to be worth a loop. Nothing here allocates, fails or keeps state but the choice of the implementation. */
#include "mask.h"

#include <errno.h>
#include <string.h>

/* The types of every load and store below: any address will do (aligned(1)) and they may read what was written as
 * something else (may_alias). Vectors are the compiler's own, so that one source serves every instruction set. */
typedef uint16_t word_2 __attribute__((aligned(1), may_alias));
typedef uint32_t word_4 __attribute__((aligned(1), may_alias));
typedef uint64_t word_8 __attribute__((aligned(1), may_alias));
typedef uint64_t word_16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t word_32 __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint64_t word_64 __attribute__((vector_size(64), aligned(1), may_alias));

#define LOAD(type, address) (*(const type *)(address))
#define STORE(type, address, value) (*(type *)(address) = (value))

/* A key as these functions take it: the 4 bytes in memory order, the first one meeting source[0]. */
static inline uint32_t key_at(uint32_t key, size_t offset)
{
    unsigned bits = 8 * (offset & 3);

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return key >> bits | key << (-bits & 31);
#else
    return key << bits | key >> (-bits & 31);
#endif
}

static inline uint64_t key_twice(uint32_t key) { return (uint64_t)key << 32 | key; }

/* Every path below obeys two rules, and they are what makes overlapping ranges come out right:
 * words go forward, and a word is loaded before any store that lies at or after it;
 * where two words share bytes, both are loaded before either is stored, so the shared bytes are written twice with
 * the same value and never combined with the key twice. */

enum { SMALL_BYTES_MAX = 128 };

static inline void move_under_16(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key)
{
    uint64_t keys = key_twice(key);

    if (bytes >= 8) {
        size_t last = bytes - 8;
        uint64_t head = LOAD(word_8, source) ^ keys;
        uint64_t tail = LOAD(word_8, source + last) ^ key_twice(key_at(key, last));
        STORE(word_8, target, head);
        STORE(word_8, target + last, tail);
    } else if (bytes >= 4) {
        size_t last = bytes - 4;
        uint32_t head = LOAD(word_4, source) ^ key;
        uint32_t tail = LOAD(word_4, source + last) ^ key_at(key, last);
        STORE(word_4, target, head);
        STORE(word_4, target + last, tail);
    } else if (bytes > 0) {
        uint8_t keyed[4];
        memcpy(keyed, &key, sizeof keyed);
        for (size_t i = 0; i < bytes; i++)
            target[i] = source[i] ^ keyed[i];
    }
}

/* 16 to SMALL_BYTES_MAX bytes: as many words from the front as from the back, meeting in the middle. */
static inline void move_small(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key)
{
    size_t last = bytes - 16;
    word_16 keys = (word_16){0} ^ key_twice(key);
    word_16 keys_last = (word_16){0} ^ key_twice(key_at(key, last));
    const uint8_t *source_last = source + last;
    uint8_t *target_last = target + last;

    word_16 head_0 = LOAD(word_16, source) ^ keys;
    word_16 tail_0 = LOAD(word_16, source_last) ^ keys_last;
    if (bytes > 32) {
        word_16 head_1 = LOAD(word_16, source + 16) ^ keys;
        word_16 tail_1 = LOAD(word_16, source_last - 16) ^ keys_last;
        if (bytes > 64) {
            word_16 head_2 = LOAD(word_16, source + 32) ^ keys;
            word_16 head_3 = LOAD(word_16, source + 48) ^ keys;
            word_16 tail_2 = LOAD(word_16, source_last - 32) ^ keys_last;
            word_16 tail_3 = LOAD(word_16, source_last - 48) ^ keys_last;
            STORE(word_16, target + 32, head_2);
            STORE(word_16, target + 48, head_3);
            STORE(word_16, target_last - 48, tail_3);
            STORE(word_16, target_last - 32, tail_2);
        }
        STORE(word_16, target + 16, head_1);
        STORE(word_16, target_last - 16, tail_1);
    }
    STORE(word_16, target, head_0);
    STORE(word_16, target_last, tail_0);
}

/* Defines move_<name> for at least one word. The first and the last word are loaded before the loop and stored after
 * it; between them the loop has whole words only, its stores aligned, since a store across two cache lines costs
 * twice. */
#define DEFINE_MOVE(name, word, attributes)                                                                          \
    attributes static void move_##name(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key)           \
    {                                                                                                                \
        const size_t size = sizeof(word);                                                                            \
        size_t last = bytes - size;                                                                                  \
        size_t i = size - (uintptr_t)target % size;                                                                  \
        word head = LOAD(word, source) ^ key_twice(key);                                                             \
        word tail = LOAD(word, source + last) ^ key_twice(key_at(key, last));                                        \
        word keys = (word){0} ^ key_twice(key_at(key, i));                                                           \
                                                                                                                     \
        for (; i + 4 * size <= bytes; i += 4 * size) {                                                               \
            word a = LOAD(word, source + i) ^ keys;                                                                  \
            word b = LOAD(word, source + i + size) ^ keys;                                                           \
            word c = LOAD(word, source + i + 2 * size) ^ keys;                                                       \
            word d = LOAD(word, source + i + 3 * size) ^ keys;                                                       \
            STORE(word, target + i, a);                                                                              \
            STORE(word, target + i + size, b);                                                                       \
            STORE(word, target + i + 2 * size, c);                                                                   \
            STORE(word, target + i + 3 * size, d);                                                                   \
        }                                                                                                            \
        for (; i + size <= bytes; i += size)                                                                         \
            STORE(word, target + i, LOAD(word, source + i) ^ keys);                                                  \
        STORE(word, target, head);                                                                                   \
        STORE(word, target + last, tail);                                                                            \
    }

static bool always(void) { return true; }

DEFINE_MOVE(scalar, word_8, )

#if defined(__x86_64__)
DEFINE_MOVE(sse2, word_16, )
DEFINE_MOVE(avx2, word_32, __attribute__((target("avx2"))))
DEFINE_MOVE(avx512, word_64, __attribute__((target("avx512f"))))

static bool has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
#elif defined(__aarch64__)
DEFINE_MOVE(neon, word_16, )
#endif

/* Slowest first. */
static const struct implementation {
    const char *name;
    void (*move)(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key);
    bool (*runs_here)(void);
} implementations[] = {
    {"scalar", move_scalar, always},
#if defined(__x86_64__)
    {"sse2", move_sse2, always},
    {"avx2", move_avx2, has_avx2},
    {"avx512", move_avx512, has_avx512},
#elif defined(__aarch64__)
    {"neon", move_neon, always},
#endif
};

static const struct implementation *selected = &implementations[0];

static void select_fastest(void)
{
    for (size_t i = 0; i < URS_COUNT(implementations); i++)
        if (implementations[i].runs_here())
            selected = &implementations[i];
}

/* As the library is loaded, so that no call has to ask whether the choice has been made. */
__attribute__((constructor)) static void initialize(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    select_fastest();
}

void urs_mask_move(uint8_t *target, const uint8_t *source, size_t bytes, const uint8_t key[4], size_t offset)
{
    uint32_t rotated = key_at(LOAD(word_4, key), offset);

    if (bytes < 16)
        move_under_16(target, source, bytes, rotated);
    else if (bytes <= SMALL_BYTES_MAX)
        move_small(target, source, bytes, rotated);
    else
        selected->move(target, source, bytes, rotated);
}

int urs_mask_select(const char *name)
{
    if (strcmp(name, "auto") == 0) {
        select_fastest();
        return 0;
    }
    for (size_t i = 0; i < URS_COUNT(implementations); i++) {
        if (strcmp(name, implementations[i].name) != 0)
            continue;
        if (!implementations[i].runs_here())
            return -ENOTSUP;
        selected = &implementations[i];
        return 0;
    }
    return -EINVAL;
}

const char *urs_mask_selected(void) { return selected->name; }

const char *urs_mask_available(size_t index)
{
    for (size_t i = 0; i < URS_COUNT(implementations); i++)
        if (implementations[i].runs_here() && index-- == 0)
            return implementations[i].name;
    return NULL;
}
