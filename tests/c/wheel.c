/* The timer wheel against the simplest thing that could be right: an array of moments. Prints how many timers fired. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "wheel.h"

enum { SLOTS = 500, STEPS = 200000, HORIZON_MS = (URS_WHEEL_BUCKETS - 2) * URS_WHEEL_TICK_MS };

int main(void)
{
    static struct urs_wheel wheel;
    static uint64_t due[SLOTS];          /* 0: not set */
    uint64_t now = 123456789;
    unsigned fired = 0;
    srand(42);
    urs_wheel_open(&wheel, now);
    assert(urs_wheel_next_ms(&wheel, now) == -1);
    for (unsigned step = 0; step < STEPS; step++) {
        uint32_t slot = (uint32_t)rand() % SLOTS;
        if (rand() % 4 == 0) {
            urs_wheel_cancel(&wheel, slot);
            due[slot] = 0;
        } else {
            due[slot] = now + (uint64_t)rand() % (2 * HORIZON_MS);
            assert(urs_wheel_set(&wheel, slot, due[slot]) == 0);
        }
        now += rand() % 1000 == 0 ? 3 * HORIZON_MS : (uint64_t)rand() % 50;
        while ((slot = urs_wheel_take(&wheel, now)) != URS_WHEEL_NONE) {
            assert(due[slot] != 0);
            /* Early only where the moment lay beyond the horizon: who is woken sets the timer anew. */
            if (due[slot] > now) {
                assert(urs_wheel_set(&wheel, slot, due[slot]) == 0);
                continue;
            }
            due[slot] = 0;
            fired++;
        }
        int64_t next = urs_wheel_next_ms(&wheel, now);
        for (slot = 0; slot < SLOTS; slot++) {
            if (due[slot] == 0)
                continue;
            assert(due[slot] + 2 * URS_WHEEL_TICK_MS > now);  /* never later than that */
            assert(next >= 0 && (uint64_t)next <= (due[slot] > now ? due[slot] - now : 0) + 2 * URS_WHEEL_TICK_MS);
        }
    }
    urs_wheel_close(&wheel);
    printf("%u\n", fired);
    return 0;
}
