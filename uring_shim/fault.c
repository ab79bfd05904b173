/* The test build's plan of faults: which call of which kind fails, and how. Empty in the ordinary build. */
#define _GNU_SOURCE
#include "fault.h"
#ifdef URS_FAULTS
#include <stddef.h>
#endif

#ifdef URS_FAULTS
static struct {
    uint64_t calls;
    uint64_t from;                       /* the first call that fails, counted from 1; 0: none */
    uint64_t count;                      /* the number of calls that fail */
    uint64_t injected;
    int32_t fault;
} plans[URS_FAULT_POINTS];
#endif

int urs_fault_plan(int point, uint64_t from, uint64_t count, int32_t fault)
{
#ifdef URS_FAULTS
    if (point < 0 || point >= URS_FAULT_POINTS)
        return -EINVAL;
    plans[point].calls = plans[point].injected = 0;
    plans[point].from = from;
    plans[point].count = count;
    plans[point].fault = fault;
    return 0;
#else
    (void)point;
    (void)from;
    (void)count;
    (void)fault;
    return -ENOTSUP;
#endif
}

uint64_t urs_fault_injected(int point)
{
#ifdef URS_FAULTS
    return point >= 0 && point < URS_FAULT_POINTS ? plans[point].injected : 0;
#else
    (void)point;
    return 0;
#endif
}

#ifdef URS_FAULTS
int32_t urs_fault(enum urs_fault_point point)
{
    uint64_t call = ++plans[point].calls;
    if (plans[point].from == 0 || call < plans[point].from || call - plans[point].from >= plans[point].count)
        return 0;
    plans[point].injected++;
    return plans[point].fault;
}
#endif
