/* Definitions that every file of the load generator may use: the only way to fail, and the only clock. No state of its
 * own. */
#ifndef LOAD_BASE_H
#define LOAD_BASE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* The generator runs once and has no caller that could handle an error: it prints the cause and exits with status 1. */
#define fail(...) (fputs("load: ", stderr), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

enum { NANOSECONDS_PER_MICROSECOND = 1000, NANOSECONDS_PER_MILLISECOND = 1000000, NANOSECONDS_PER_SECOND = 1000000000 };

static inline uint64_t clock_nanoseconds(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        return 0;
    return (uint64_t)time.tv_sec * NANOSECONDS_PER_SECOND + (uint64_t)time.tv_nsec;
}

static inline uint64_t now_nanoseconds(void)
{
    return clock_nanoseconds(CLOCK_MONOTONIC);
}

/* Returns zeroed memory, or ends the program. */
static inline void *allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count, bytes);
    if (memory == NULL)
        fail("out of memory (%zu times %zu bytes)", count, bytes);
    return memory;
}

#endif
