/* The clock of all timing loops: the CPU time of the thread, so that the work of other processes does not count. */
#ifndef URS_CLOCK_H
#define URS_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

#endif
