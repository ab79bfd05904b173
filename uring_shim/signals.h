/* Saves and restores the system's action for a signal: Python's signal module cannot name a handler that was not set
 * from Python. No other signal handling: the policy is in signals.py. */
#ifndef URS_SIGNALS_H
#define URS_SIGNALS_H

#include "base.h"

/* cdef: begin */

/* A struct sigaction, with enough room for that of any C library. */
struct urs_signal_action {
    uint64_t storage[32];
};

/* Copies the present action for a signal. Returns 1 if the signal is ignored, 0 if not, or -errno. */
int urs_signal_save(int number, struct urs_signal_action *action);

/* Restores a saved action. Returns 0 or -errno. */
int urs_signal_restore(int number, const struct urs_signal_action *action);

/* cdef: end */

#endif
