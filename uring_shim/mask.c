/* Masking: one loop over words, compiled for each word size that a CPU has, and shorter paths for payloads that are too
 * short for the loop. The selected implementation is the only state. */
#include "mask.h"

#include <errno.h>
#include <string.h>

/* The types of every load and store below. They work at any address (aligned(1)) and may read memory that was written
 * with another type (may_alias). The vectors are those of the compiler, so that one source serves every instruction
 * set. */
typedef uint32_t word_4 __attribute__((aligned(1), may_alias));
typedef uint64_t word_8 __attribute__((aligned(1), may_alias));
typedef uint64_t word_16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t word_32 __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint64_t word_64 __attribute__((vector_size(64), aligned(1), may_alias));

#define LOAD(type, address) (*(const type *)(address))
#define STORE(type, address, value) (*(type *)(address) = (value))

/* Every function below takes the key in a register: its four bytes as they lie in memory; the first of them is for
 * source[0]. This function returns the key for the byte at `offset`. */
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

/* Two rules make overlapping ranges correct on every path below. First, words go forward, so a store reaches only
 * source bytes that have been loaded already. Second, if two words share bytes, both are loaded before either is
 * stored: the shared bytes are written twice with the same value, and never combined with the key twice. */

/* Less than one 16-byte word. */
static inline void move_tiny(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key)
{
    if (bytes >= 8) {
        size_t last = bytes - 8;
        uint64_t head = LOAD(word_8, source) ^ key_twice(key);
        uint64_t tail = LOAD(word_8, source + last) ^ key_twice(key_at(key, last));
        STORE(word_8, target, head);
        STORE(word_8, target + last, tail);
    } else if (bytes >= 4) {
        size_t last = bytes - 4;
        uint32_t head = LOAD(word_4, source) ^ key;
        uint32_t tail = LOAD(word_4, source + last) ^ key_at(key, last);
        STORE(word_4, target, head);
        STORE(word_4, target + last, tail);
    } else {
        uint8_t key_bytes[4];
        memcpy(key_bytes, &key, sizeof key_bytes);
        for (size_t i = 0; i < bytes; i++)
            target[i] = source[i] ^ key_bytes[i];
    }
}

/* Defines move_<name>, for at least one word. Up to four words need no loop: half of the words are placed at the front
 * and half at the back, and they meet in the middle. For more bytes, the first and the last word are loaded before the
 * loop and stored after it. The loop between them has whole words only. Its stores are aligned, because a store across
 * two cache lines costs twice. */
#define DEFINE_MOVE(name, word, attributes)                                                                          \
    attributes static void move_##name(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key)           \
    {                                                                                                                \
        const size_t size = sizeof(word);                                                                            \
        size_t last = bytes - size;                                                                                  \
        word keys = (word){0} ^ key_twice(key);                                                                      \
        word keys_last = (word){0} ^ key_twice(key_at(key, last));                                                   \
        word head = LOAD(word, source) ^ keys;                                                                       \
        word tail = LOAD(word, source + last) ^ keys_last;                                                           \
                                                                                                                     \
        if (bytes > 4 * size) {                                                                                      \
            size_t i = size - (uintptr_t)target % size;                                                              \
            keys = (word){0} ^ key_twice(key_at(key, i));                                                            \
            for (; i + 4 * size <= bytes; i += 4 * size) {                                                           \
                word a = LOAD(word, source + i) ^ keys;                                                              \
                word b = LOAD(word, source + i + size) ^ keys;                                                       \
                word c = LOAD(word, source + i + 2 * size) ^ keys;                                                   \
                word d = LOAD(word, source + i + 3 * size) ^ keys;                                                   \
                STORE(word, target + i, a);                                                                          \
                STORE(word, target + i + size, b);                                                                   \
                STORE(word, target + i + 2 * size, c);                                                               \
                STORE(word, target + i + 3 * size, d);                                                               \
            }                                                                                                        \
            for (; i + size <= bytes; i += size)                                                                     \
                STORE(word, target + i, LOAD(word, source + i) ^ keys);                                              \
        } else if (bytes > 2 * size) {                                                                               \
            word head_2 = LOAD(word, source + size) ^ keys;                                                          \
            word tail_2 = LOAD(word, source + last - size) ^ keys_last;                                              \
            STORE(word, target + size, head_2);                                                                      \
            STORE(word, target + last - size, tail_2);                                                               \
        }                                                                                                            \
        STORE(word, target, head);                                                                                   \
        STORE(word, target + last, tail);                                                                            \
    }

/* Up to 64 bytes this path is always used: the call through the pointer would cost more than wider words save. Every
 * supported CPU has 16-byte words, or the compiler builds them from smaller ones. */
enum { SMALL_BYTES_MAX = 64 };

DEFINE_MOVE(small, word_16, inline)
DEFINE_MOVE(scalar, word_8, )

static bool always(void) { return true; }

#if defined(__x86_64__)
DEFINE_MOVE(sse2, word_16, )
DEFINE_MOVE(avx2, word_32, __attribute__((target("avx2"))))
DEFINE_MOVE(avx512, word_64, __attribute__((target("avx512f"))))

static bool has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
#elif defined(__aarch64__)
DEFINE_MOVE(neon, word_16, )
#endif

/* Slowest first. AVX-512 is below AVX2 because Zen 4, which stores 64 bytes in two halves, gains nothing from it: 0.85
 * to 1.00 times the speed of AVX2 from 1 KiB to 64 MiB (bench/micro/run.py). If that benchmark shows otherwise on a
 * machine, select AVX-512 by name. */
static const struct implementation {
    const char *name;
    void (*move)(uint8_t *target, const uint8_t *source, size_t bytes, uint32_t key);
    bool (*runs_here)(void);
} implementations[] = {
    {"scalar", move_scalar, always},
#if defined(__x86_64__)
    {"sse2", move_sse2, always},
    {"avx512", move_avx512, has_avx512},
    {"avx2", move_avx2, has_avx2},
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

/* Runs when the library is loaded, so that no call must check whether an implementation has been chosen. */
__attribute__((constructor)) static void initialize(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    select_fastest();
}

void urs_mask_move(uint8_t *target, const uint8_t *source, size_t bytes, const uint8_t key[4], size_t offset)
{
    uint32_t key_here = key_at(LOAD(word_4, key), offset);

    if (bytes < sizeof(word_16))
        move_tiny(target, source, bytes, key_here);
    else if (bytes <= SMALL_BYTES_MAX)
        move_small(target, source, bytes, key_here);
    else
        selected->move(target, source, bytes, key_here);
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
