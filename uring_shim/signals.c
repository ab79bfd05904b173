/* Saving and restoring the action of a signal. */
#define _GNU_SOURCE
#include "signals.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

_Static_assert(sizeof(struct sigaction) <= sizeof(struct urs_signal_action), "no room for a struct sigaction");

int urs_signal_save(int number, struct urs_signal_action *action)
{
    struct sigaction present;
    if (sigaction(number, NULL, &present) != 0)
        return -errno;
    memcpy(action->storage, &present, sizeof present);
    return (present.sa_flags & SA_SIGINFO) == 0 && present.sa_handler == SIG_IGN;
}

int urs_signal_restore(int number, const struct urs_signal_action *action)
{
    struct sigaction saved;
    memcpy(&saved, action->storage, sizeof saved);
    return sigaction(number, &saved, NULL) == 0 ? 0 : -errno;
}
