/* The test build's failing requests; nothing in the ordinary build. */
#define _GNU_SOURCE
#include "io_fault.h"

#ifdef URS_FAULTS

#include <string.h>

bool urs_io_fail_at_once(struct urs_io_faults *faults, uint64_t data, int32_t fault)
{
    if (fault >= 0 || faults->failed_count == URS_COUNT(faults->failed))
        return false;
    struct urs_completion *completion = &faults->failed[faults->failed_count++];
    *completion = (struct urs_completion){.result = fault, .buffer = URS_IO_NO_BUFFER};
    urs_io_unpack(data, completion);
    return true;
}

uint32_t urs_io_collect_failed(struct urs_io_faults *faults, struct urs_completion *out, uint32_t room)
{
    uint32_t count = (uint32_t)urs_min(room, faults->failed_count);
    memcpy(out, faults->failed, count * sizeof *out);
    faults->failed_count -= count;
    memmove(faults->failed, faults->failed + count, faults->failed_count * sizeof *out);
    return count;
}

bool urs_io_failed_waiting(const struct urs_io_faults *faults) { return faults->failed_count > 0; }

bool urs_io_fail_multishot(struct urs_io_faults *faults, struct urs_completion *completion, uint64_t data)
{
    uint32_t index = 0;
    while (index < faults->ending_count && faults->ending[index].data != data)
        index++;
    if (index < faults->ending_count) {
        if (completion->more)
            return false;
        if (completion->result == -ECANCELED)
            completion->result = faults->ending[index].fault;
        faults->ending[index] = faults->ending[--faults->ending_count];
        return false;
    }
    bool accept = completion->kind == URS_IO_ACCEPT;
    if (!completion->more || (!accept && completion->kind != URS_IO_RECEIVE) || index == URS_COUNT(faults->ending))
        return false;
    int32_t fault = urs_fault(accept ? URS_FAULT_ACCEPT : URS_FAULT_RECEIVE);
    if (fault >= 0)
        return false;
    faults->ending[index].data = data;
    faults->ending[index].fault = fault;
    faults->ending_count++;
    return true;
}

#endif
