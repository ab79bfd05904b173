/* Descriptors of others (an event loop, a pipe, a database client) whose readiness ends a turn. This file never reads
 * or writes them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "fault.h"
#include "watch.h"
#include "work.h"

enum { WATCHES_MIN = 4 };

static uint64_t id_of(const struct urs_watches *watches, uint32_t slot)
{
    return (uint64_t)watches->all[slot].generation << 32 | slot;
}

/* Returns a free slot; URS_WATCHES_MAX if there is none, or -ENOMEM. */
static int64_t take_slot(struct urs_watches *watches)
{
    for (uint32_t slot = 0; slot < watches->room; slot++)
        if (watches->all[slot].state == URS_WATCH_FREE)
            return slot;
    uint32_t room = (uint32_t)urs_min(2 * (size_t)watches->room + WATCHES_MIN, URS_WATCHES_MAX);
    if (room == watches->room)
        return URS_WATCHES_MAX;
    if (urs_fault(URS_FAULT_GROW) != 0)
        return -ENOMEM;
    uint32_t *ready = realloc(watches->ready, room * sizeof *ready);
    if (ready == NULL)
        return -ENOMEM;
    watches->ready = ready;
    struct urs_watch *all = realloc(watches->all, room * sizeof *all);
    if (all == NULL)
        return -ENOMEM;
    watches->all = all;
    uint32_t first = watches->room;
    for (; watches->room < room; watches->room++)
        watches->all[watches->room] = (struct urs_watch){.fd = -1};
    return first;
}

/* Ends the use of a slot. Its next user has another generation. */
static void release(struct urs_watch *watch)
{
    URS_ASSERT(watch->state != URS_WATCH_FREE && watch->fd >= 0 && !watch->armed);
    close(watch->fd);
    watch->fd = -1;
    watch->generation++;
    watch->state = URS_WATCH_FREE;
}

static void delay(struct urs_reactor *reactor, struct urs_watch *watch)
{
    watch->state = URS_WATCH_DELAYED;
    urs_work_schedule_retry(reactor);
}

/* Tells the backend to stop. If it has no room for that now, the next turn tries again. */
static void stop(struct urs_reactor *reactor, uint32_t slot)
{
    struct urs_watch *watch = &reactor->watches.all[slot];
    URS_ASSERT(watch->state == URS_WATCH_STOPPING && watch->armed);
    if (reactor->io->operations->unwatch(reactor->io, slot, watch->generation, watch->fd) == 0) {
        watch->state = URS_WATCH_STOPPED;
    } else {
        reactor->watches.due = true;
        urs_work_schedule_retry(reactor);
    }
}

static int arm(struct urs_reactor *reactor, uint32_t slot)
{
    struct urs_watch *watch = &reactor->watches.all[slot];
    URS_ASSERT(watch->state == URS_WATCH_QUIET && !watch->armed);
    int error = reactor->io->operations->watch(reactor->io, slot, watch->generation, watch->fd, watch->writable);
    watch->armed = error == 0;
    return error;
}

void urs_watch_arm(struct urs_reactor *reactor)
{
    struct urs_watches *watches = &reactor->watches;
    if (URS_UNLIKELY(watches->ready_count > 0))
        reactor->woken = true;  /* an exception kept Python from taking them */
    if (URS_LIKELY(!watches->due))
        return;
    watches->due = false;
    for (uint32_t slot = 0; slot < watches->room; slot++) {
        struct urs_watch *watch = &watches->all[slot];
        if (watch->state == URS_WATCH_STOPPING)
            stop(reactor, slot);
        else if (watch->state == URS_WATCH_QUIET && !watch->armed && arm(reactor, slot) != 0)
            delay(reactor, watch);
    }
}

void urs_watch_retry(struct urs_reactor *reactor)
{
    struct urs_watches *watches = &reactor->watches;
    for (uint32_t slot = 0; slot < watches->room; slot++) {
        if (watches->all[slot].state == URS_WATCH_DELAYED) {
            watches->all[slot].state = URS_WATCH_QUIET;
            watches->due = true;
        }
    }
    urs_watch_arm(reactor);
}

void urs_watch_completed(struct urs_reactor *reactor, const struct urs_completion *completion)
{
    struct urs_watches *watches = &reactor->watches;
    URS_ASSERT(completion->slot < watches->room);
    struct urs_watch *watch = &watches->all[completion->slot];
    if ((watch->generation & 0xffffff) != completion->generation)
        return;
    watch->armed = completion->more;
    if (watch->state == URS_WATCH_STOPPING || watch->state == URS_WATCH_STOPPED) {
        if (!watch->armed)
            release(watch);
    } else if (watch->state == URS_WATCH_QUIET && completion->result >= 0) {
        watch->state = URS_WATCH_READY;
        watches->ready[watches->ready_count++] = completion->slot;
        reactor->woken = true;
    } else if (watch->state == URS_WATCH_QUIET && !watch->armed) {
        delay(reactor, watch);
    }
}

void urs_watch_close(struct urs_reactor *reactor)
{
    struct urs_watches *watches = &reactor->watches;
    for (uint32_t slot = 0; slot < watches->room; slot++)
        if (watches->all[slot].state != URS_WATCH_FREE)
            close(watches->all[slot].fd);
    free(watches->all);
    free(watches->ready);
    *watches = (struct urs_watches){0};
}

int urs_reactor_watch(struct urs_reactor *reactor, int fd, bool writable, uint64_t *id)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    struct urs_watches *watches = &reactor->watches;
    int64_t slot = take_slot(watches);
    if (slot < 0 || slot == URS_WATCHES_MAX)
        return slot < 0 ? (int)slot : URS_ERROR_LIMIT;
    int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own_fd < 0)
        return -errno;
    struct urs_watch *watch = &watches->all[slot];
    watch->fd = own_fd;
    watch->writable = writable;
    watch->generation++;
    watch->state = URS_WATCH_QUIET;
    int error = arm(reactor, (uint32_t)slot);
    if (error == -EBUSY) {
        delay(reactor, watch);
    } else if (error != 0) {
        release(watch);
        return error;
    }
    *id = id_of(watches, (uint32_t)slot);
    return 0;
}

int urs_reactor_unwatch(struct urs_reactor *reactor, uint64_t id)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    struct urs_watches *watches = &reactor->watches;
    uint32_t slot = (uint32_t)id;
    if (slot >= watches->room || id_of(watches, slot) != id || watches->all[slot].state >= URS_WATCH_STOPPING)
        return URS_ERROR_STALE;
    struct urs_watch *watch = &watches->all[slot];
    if (watch->state == URS_WATCH_READY) {
        uint32_t kept = 0;
        for (uint32_t index = 0; index < watches->ready_count; index++)
            if (watches->ready[index] != slot)
                watches->ready[kept++] = watches->ready[index];
        URS_ASSERT(kept + 1 == watches->ready_count);
        watches->ready_count = kept;
    }
    watch->state = URS_WATCH_STOPPING;
    if (watch->armed)
        stop(reactor, slot);
    else
        release(watch);
    return 0;
}

const uint32_t *urs_reactor_watches_ready(struct urs_reactor *reactor) { return &reactor->watches.ready_count; }

uint32_t urs_reactor_take_watches(struct urs_reactor *reactor, uint64_t *ids, uint32_t room)
{
    struct urs_watches *watches = &reactor->watches;
    if (urs_core_check(reactor) != 0)
        return 0;
    uint32_t count = (uint32_t)urs_min(watches->ready_count, room);
    for (uint32_t index = 0; index < count; index++) {
        struct urs_watch *watch = &watches->all[watches->ready[index]];
        URS_ASSERT(watch->state == URS_WATCH_READY);
        ids[index] = id_of(watches, watches->ready[index]);
        watch->state = URS_WATCH_QUIET;
        watches->due = watches->due || !watch->armed;
    }
    watches->ready_count -= count;
    for (uint32_t index = 0; index < watches->ready_count; index++)
        watches->ready[index] = watches->ready[index + count];
    return count;
}
