/* What the test build makes of io_uring's requests: completions that no kernel wrote. In the ordinary build nothing is
 * here but functions that do nothing, and a struct of no use. */
#ifndef URS_IO_FAULT_H
#define URS_IO_FAULT_H

#include "fault.h"
#include "io.h"

struct urs_io_faults {
#ifdef URS_FAULTS
    struct urs_completion failed[1024];  /* those to be collected next */
    uint32_t failed_count;
    struct { uint64_t data; int32_t fault; } ending[1024]; /* multishots that are cancelled to fail */
    uint32_t ending_count;
    struct { struct urs_completion completion; int32_t waits; } late[256]; /* said later than the kernel said it */
    uint32_t late_count;
#else
    char none;
#endif
};

#ifdef URS_FAULTS

/* True if the request `data` is to fail with `fault` (negative) before the kernel sees it: its one completion is then
 * collected next. */
bool urs_io_fail_at_once(struct urs_io_faults *faults, uint64_t data, int32_t fault);

/* True if a completion was kept to be collected some waits later. */
bool urs_io_keep_back(struct urs_io_faults *faults, const struct urs_completion *completion);

/* A wait begins: what was kept back comes nearer. */
void urs_io_count_wait(struct urs_io_faults *faults);

/* Fills `out` with what failed at once, and what was kept back long enough; returns how much. */
uint32_t urs_io_collect_failed(struct urs_io_faults *faults, struct urs_completion *out, uint32_t room);

bool urs_io_failed_waiting(const struct urs_io_faults *faults);

/* Looks at a completion of the request `data`, as the kernel wrote it. True if its multishot is to fail in the midst of
 * it: the caller then cancels it for real, so that no buffer, descriptor or byte is lost, and the fault takes the place
 * of the -ECANCELED of its last completion. */
bool urs_io_fail_multishot(struct urs_io_faults *faults, struct urs_completion *completion, uint64_t data);

#else

static inline bool urs_io_fail_at_once(struct urs_io_faults *faults, uint64_t data, int32_t fault)
{
    (void)faults;
    (void)data;
    (void)fault;
    return false;
}

static inline bool urs_io_keep_back(struct urs_io_faults *faults, const struct urs_completion *completion)
{
    (void)faults;
    (void)completion;
    return false;
}

static inline void urs_io_count_wait(struct urs_io_faults *faults) { (void)faults; }

static inline uint32_t urs_io_collect_failed(struct urs_io_faults *faults, struct urs_completion *out, uint32_t room)
{
    (void)faults;
    (void)out;
    (void)room;
    return 0;
}

static inline bool urs_io_failed_waiting(const struct urs_io_faults *faults)
{
    (void)faults;
    return false;
}

static inline bool urs_io_fail_multishot(struct urs_io_faults *faults, struct urs_completion *completion,
                                         uint64_t data)
{
    (void)faults;
    (void)completion;
    (void)data;
    return false;
}

#endif

#endif
