/* Synthetic completions of io_uring requests, for the test build. In the ordinary build these functions are empty and
 * the struct is a placeholder. */
#ifndef URS_IO_FAULT_H
#define URS_IO_FAULT_H

#include "fault.h"
#include "io.h"

struct urs_io_faults {
#ifdef URS_FAULTS
    struct urs_completion failed[1024];  /* completions that the next collect returns first */
    uint32_t failed_count;
    struct { uint64_t data; int32_t fault; } ending[1024]; /* multishot requests that are cancelled so that they fail */
    uint32_t ending_count;
    struct { struct urs_completion completion; int32_t waits; } late[256]; /* completions that are returned later than
                                                                              the kernel returned them */
    uint32_t late_count;
#else
    char none;
#endif
};

#ifdef URS_FAULTS

/* Returns true if the request `data` must fail with `fault` (negative) before the kernel sees it: the next collect then
 * returns its only completion. */
bool urs_io_fail_at_once(struct urs_io_faults *faults, uint64_t data, int32_t fault);

/* Returns true if the completion was kept back, to be collected some waits later. */
bool urs_io_keep_back(struct urs_io_faults *faults, const struct urs_completion *completion);

/* Counts one more wait for the completions that are kept back. */
void urs_io_count_wait(struct urs_io_faults *faults);

/* Copies to `out` the requests that failed at once and the completions that were kept back long enough; returns their
 * number. */
uint32_t urs_io_collect_failed(struct urs_io_faults *faults, struct urs_completion *out, uint32_t room);

bool urs_io_failed_waiting(const struct urs_io_faults *faults);

/* Checks a completion of the request `data`, as the kernel wrote it. Returns true if its multishot must fail while it
 * is armed: the caller then cancels it for real, so that no buffer, descriptor or byte is lost, and the last completion
 * reports the fault instead of -ECANCELED. */
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
