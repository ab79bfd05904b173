/* The requests that fail in the test build. Empty in the ordinary build. */
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

bool urs_io_keep_back(struct urs_io_faults *faults, const struct urs_completion *completion)
{
    if (completion->kind != URS_IO_RELEASE || faults->late_count == URS_COUNT(faults->late))
        return false;
    int32_t waits = urs_fault(URS_FAULT_NOTIFY);
    if (waits <= 0)
        return false;
    faults->late[faults->late_count].completion = *completion;
    faults->late[faults->late_count++].waits = waits;
    return true;
}

void urs_io_count_wait(struct urs_io_faults *faults)
{
    for (uint32_t index = 0; index < faults->late_count; index++)
        faults->late[index].waits -= faults->late[index].waits > 0;
}

uint32_t urs_io_collect_failed(struct urs_io_faults *faults, struct urs_completion *out, uint32_t room)
{
    uint32_t count = (uint32_t)urs_min(room, faults->failed_count);
    memcpy(out, faults->failed, count * sizeof *out);
    faults->failed_count -= count;
    memmove(faults->failed, faults->failed + count, faults->failed_count * sizeof *out);
    for (uint32_t index = 0; index < faults->late_count && count < room;) {
        if (faults->late[index].waits > 0) {
            index++;
            continue;
        }
        out[count++] = faults->late[index].completion;
        faults->late[index] = faults->late[--faults->late_count];
    }
    return count;
}

bool urs_io_failed_waiting(const struct urs_io_faults *faults)
{
    for (uint32_t index = 0; index < faults->late_count; index++)
        if (faults->late[index].waits == 0)
            return true;
    return faults->failed_count > 0;
}

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
