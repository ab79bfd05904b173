/* The backend on io_uring: one ring, multishot accept and receive from a provided-buffer ring, and sends that never
 * wait. The only file that uses liburing. Each line that depends on the behaviour of a kernel version has a comment
 * that says so. */
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "io_fault.h"

/* Constants newer than the headers of liburing 2.3; their values are the kernel's ABI. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif
#ifndef IORING_FEAT_MIN_TIMEOUT
#define IORING_FEAT_MIN_TIMEOUT (1U << 15)
#endif
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif

enum { BUFFER_GROUP = 1, ENTRIES_MIN = 64, ENTRIES_MAX = 4096, CQ_FACTOR = 4, KIND_CANCEL = 255, RETRY_NS = 1000000 };

/* struct io_uring_getevents_arg as Linux 6.12 has it. In older headers the third member is padding. */
struct getevents {
    uint64_t sigmask;
    uint32_t sigmask_bytes;
    uint32_t least_us;
    uint64_t timespec;
};
_Static_assert(sizeof(struct getevents) == sizeof(struct io_uring_getevents_arg), "the ABI of io_uring_enter");
_Static_assert(offsetof(struct getevents, timespec) == offsetof(struct io_uring_getevents_arg, ts),
               "the ABI of io_uring_enter");

struct uring {
    struct urs_io io;                    /* first, so that a pointer to it is a pointer to the struct */
    struct io_uring ring;
    struct io_uring_buf_ring *buffers;
    size_t buffers_bytes;
    uint32_t released;                   /* buffers added to the ring but not yet published */
    struct urs_wake wake;
    char wake_bytes[64];
    struct msghdr *messages;             /* one per submission queue entry: the kernel reads it at submit */
    unsigned enter_flags;
    uint8_t own_flags;                   /* the ring's int_flags and enter_ring_fd before register_ring_fd changed
                                            them */
    int own_fd;
    bool waits_for_several;              /* the kernel has IORING_FEAT_MIN_TIMEOUT (6.12) */
    bool wake_armed;
    bool started;
    struct urs_io_faults faults;
};

static struct uring *of(struct urs_io *io) { return (struct uring *)io; }

/* Publishes to the kernel the buffers released since the last call. */
static void publish(struct uring *uring)
{
    URS_ASSERT(uring->released <= uring->io.pool->buffers - uring->io.pool->in_use);
    if (uring->released > 0)
        io_uring_buf_ring_advance(uring->buffers, (int)uring->released);
    uring->released = 0;
}

/* Submits the queued entries, without running completions that need the task (no GETEVENTS). */
static int submit_all(struct uring *uring)
{
    publish(uring);  /* a receive that finds data takes its buffer during the submit */
    while (io_uring_sq_ready(&uring->ring) > 0) {
        uring->io.stats.enters++;
        int result = urs_fault(URS_FAULT_ENTER);
        if (result == 0)
            result = io_uring_submit(&uring->ring);
        if (result == -EINTR)
            continue;
        /* EAGAIN and EBUSY: completions must be collected first; the entries stay queued. */
        if (result == -EAGAIN || result == -EBUSY)
            return 0;
        if (result < 0)
            return result;
    }
    return 0;
}

static struct io_uring_sqe *take_sqe(struct uring *uring)
{
    if (urs_fault(URS_FAULT_ARM) != 0)
        return NULL;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL && uring->started) {
        uring->io.stats.sq_full++;
        submit_all(uring);
        sqe = io_uring_get_sqe(&uring->ring);
    }
    return sqe;
}

static int arm_wake(struct uring *uring)
{
    URS_ASSERT(!uring->wake_armed);
    struct io_uring_sqe *sqe = take_sqe(uring);
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_read(sqe, uring->wake.read_fd, uring->wake_bytes, sizeof uring->wake_bytes, 0);
    io_uring_sqe_set_data64(sqe, urs_io_pack(URS_IO_WAKE, 0, 0));
    uring->wake_armed = true;
    return 0;
}

/* Tries the best flags first. For each set of flags, tries the requested size first, then halves it while memory is
 * short. -EINVAL means a flag that this kernel lacks; -ENOMEM means the user's RLIMIT_MEMLOCK, which the rings count
 * against. */
static int setup_ring(struct io_uring *ring, uint32_t entries, struct urs_io_report *report)
{
    static const uint32_t ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,                            /* 6.1 */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 6.0 */
    };
    uint32_t wish = entries;
    int error = -EINVAL;
    for (size_t rung = 0; rung < URS_COUNT(ladder); rung++) {
        for (entries = wish; entries >= ENTRIES_MIN; entries /= 2) {
            /* Created here, enabled by the thread that will run the ring: SINGLE_ISSUER binds the ring to that
             * thread. */
            struct io_uring_params params = {
                .flags = ladder[rung] | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP
                    | IORING_SETUP_R_DISABLED,
                .cq_entries = entries * CQ_FACTOR,
            };
            error = urs_fault(URS_FAULT_SETUP);
            if (error == 0)
                error = io_uring_queue_init_params(entries, ring, &params);
            if (error == 0) {
                report->ring_entries = params.sq_entries;
                report->setup_flags = params.flags;
                report->features = params.features;
                report->reduced = rung > 0 || entries < wish;
                return 0;
            }
            if (error != -ENOMEM)
                break;
        }
        if (error != -EINVAL)
            break;
    }
    report->stage = "io_uring_setup";
    return error;
}

static int register_buffers(struct uring *uring, struct urs_io_report *report)
{
    URS_ASSERT(uring->buffers == NULL);
    struct urs_pool *pool = uring->io.pool;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uring->buffers_bytes = (pool->buffers * sizeof(struct io_uring_buf) + page - 1) / page * page;
    void *memory = mmap(NULL, uring->buffers_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    report->stage = "mmap";
    if (memory == MAP_FAILED)
        return -ENOMEM;
    struct io_uring_buf_reg registration = {
        .ring_addr = (uint64_t)(uintptr_t)memory, .ring_entries = pool->buffers, .bgid = BUFFER_GROUP};
    report->stage = "io_uring_register (provided buffer ring)";
    int error = io_uring_register_buf_ring(&uring->ring, &registration, 0);
    if (error != 0) {
        munmap(memory, uring->buffers_bytes);
        return error;
    }
    uring->buffers = memory;
    io_uring_buf_ring_init(uring->buffers);
    for (uint32_t index = 0; index < pool->buffers; index++)
        io_uring_buf_ring_add(uring->buffers, urs_pool_buffer(pool, index), (unsigned)pool->buffer_bytes,
                              (unsigned short)index, io_uring_buf_ring_mask(pool->buffers), (int)index);
    io_uring_buf_ring_advance(uring->buffers, (int)pool->buffers);
    return 0;
}

static void uring_close(struct urs_io *io)
{
    struct uring *uring = of(io);
    io_uring_queue_exit(&uring->ring);
    if (uring->buffers != NULL)
        munmap(uring->buffers, uring->buffers_bytes);
    urs_wake_close(&uring->wake);
    free(uring->messages);
    free(uring);
}

static int uring_open(struct urs_io **io, struct urs_pool *pool, uint32_t ring_entries, bool zero_copy,
                      struct urs_io_report *report)
{
    *report = (struct urs_io_report){0};
    struct uring *uring = calloc(1, sizeof *uring);
    if (uring == NULL)
        return report->error = -ENOMEM;
    uring->io.operations = &urs_io_uring;
    uring->io.pool = pool;
    report->stage = "pipe2";
    int error = urs_wake_open(&uring->wake);
    if (error != 0) {
        free(uring);
        return report->error = error;
    }
    error = setup_ring(&uring->ring, (uint32_t)urs_min(urs_max(ring_entries, ENTRIES_MIN), ENTRIES_MAX), report);
    if (error != 0) {
        urs_wake_close(&uring->wake);
        free(uring);
        return report->error = error;
    }
    /* Without IORING_ENTER_NO_IOWAIT every wait counts as iowait, and monitors show an idle server at 100 % (6.15 and
     * later). */
    uring->enter_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if ((report->features & IORING_FEAT_NO_IOWAIT) != 0)
        uring->enter_flags |= IORING_ENTER_NO_IOWAIT;
    uring->waits_for_several = (report->features & IORING_FEAT_MIN_TIMEOUT) != 0;
    uring->messages = calloc(report->ring_entries, sizeof *uring->messages);
    error = uring->messages == NULL ? -ENOMEM : register_buffers(uring, report);
    if (error != 0) {
        uring_close(&uring->io);
        return report->error = error;
    }
    report->stage = NULL;
    if (zero_copy) {
        /* The pool counts against RLIMIT_MEMLOCK; if the limit is too low there is no zero copy, and nothing else
         * changes. */
        struct iovec vector = {.iov_base = pool->memory, .iov_len = pool->stride * pool->buffers};
        report->zero_copy = io_uring_register_buffers(&uring->ring, &vector, 1) == 0;
    }
    *io = &uring->io;
    return 0;
}

static int uring_start(struct urs_io *io)
{
    struct uring *uring = of(io);
    URS_ASSERT(!uring->started);
    /* A direct system call: the shared library of liburing 2.3 does not export io_uring_enable_rings. */
    if (urs_fault_errno(urs_fault(URS_FAULT_SETUP))
        || syscall(__NR_io_uring_register, uring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) != 0)
        return -errno;
    uring->started = true;
    io_uring_ring_dontfork(&uring->ring);
    uring->own_flags = uring->ring.int_flags;
    uring->own_fd = uring->ring.enter_ring_fd;
    /* Optional: avoids a reference on the ring's file per enter call, which is costly in processes with threads. */
    if (io_uring_register_ring_fd(&uring->ring) == 1)
        uring->enter_flags |= IORING_ENTER_REGISTERED_RING;
    arm_wake(uring);  /* if this fails, the first wait tries again */
    return 0;
}

/* A registered ring is an index in a table of its thread: in another thread the same index is another ring, or none.
 * This goes back to the descriptor, with which the ring refuses other threads (EEXIST). */
static void uring_disown(struct urs_io *io)
{
    struct uring *uring = of(io);
    if (!uring->started)
        return;
    uring->ring.int_flags = uring->own_flags;
    uring->ring.enter_ring_fd = uring->own_fd;
    uring->enter_flags &= ~IORING_ENTER_REGISTERED_RING;
}

static int uring_accept(struct urs_io *io, uint32_t slot, int fd)
{
    uint64_t data = urs_io_pack(URS_IO_ACCEPT, 0, slot);
    URS_ASSERT(fd >= 0);
    /* The socket may be blocking or not: a multishot accept waits in either case (5.18 and later). */
    if (urs_io_fail_at_once(&of(io)->faults, data, urs_fault(URS_FAULT_ACCEPT)))
        return 0;
    struct io_uring_sqe *sqe = take_sqe(of(io));
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_multishot_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

static int cancel(struct uring *uring, uint64_t data)
{
    struct io_uring_sqe *sqe = take_sqe(uring);
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_cancel64(sqe, data, 0);
    io_uring_sqe_set_data64(sqe, urs_io_pack(KIND_CANCEL, 0, 0));
    return 0;
}

static int uring_accept_stop(struct urs_io *io, uint32_t slot, int fd)
{
    (void)fd;
    return cancel(of(io), urs_io_pack(URS_IO_ACCEPT, 0, slot));
}

static int uring_receive(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once)
{
    uint64_t data = urs_io_pack(URS_IO_RECEIVE, generation, slot);
    URS_ASSERT(fd >= 0);
    int32_t fault = urs_fault(URS_FAULT_RECEIVE);
    if (urs_io_fail_at_once(&of(io)->faults, data, fault))
        return 0;
    struct io_uring_sqe *sqe = take_sqe(of(io));
    if (sqe == NULL)
        return -EBUSY;
    if (once || fault > 0)
        io_uring_prep_recv(sqe, fd, NULL, (size_t)fault, 0);  /* 0 bytes: as many as fit into the buffer */
    else
        io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_GROUP;
    if (urs_fault(URS_FAULT_POLL_FIRST) != 0)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    /* Never use IORING_RECVSEND_POLL_FIRST: if data and a reset have both arrived already, such a multishot delivers
     * the data and then no further completion (seen on 6.18). */
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

static int uring_receive_stop(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    (void)fd;
    return cancel(of(io), urs_io_pack(URS_IO_RECEIVE, generation, slot));
}

static int uring_send(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, const struct iovec *vectors,
                      uint32_t count)
{
    struct uring *uring = of(io);
    uint64_t data = urs_io_pack(URS_IO_SEND, generation, slot);
    URS_ASSERT(fd >= 0 && count >= 1 && count <= URS_IO_VECTORS_MAX);
    if (io_uring_sq_space_left(&uring->ring) == 0) {
        io->stats.sq_full++;
        return -EBUSY;
    }
    int32_t fault = urs_fault(URS_FAULT_SEND);
    if (urs_io_fail_at_once(&uring->faults, data, fault))
        return 0;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL)
        return -EBUSY;  /* cannot happen: space was checked above; silences analysers */
    if (count == 1 || fault > 0) {
        io_uring_prep_send(sqe, fd, vectors->iov_base, urs_fault_cut(fault, vectors->iov_len),
                           MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
        URS_ASSERT((size_t)(sqe - uring->ring.sq.sqes) < uring->ring.sq.ring_entries);
        struct msghdr *message = &uring->messages[(size_t)(sqe - uring->ring.sq.sqes)];
        *message = (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)vectors, .msg_iovlen = count};
        io_uring_prep_sendmsg(sqe, fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

static int uring_send_zero_copy(struct urs_io *io, uint32_t token, int fd, const uint8_t *data, size_t bytes,
                                bool in_pool)
{
    struct uring *uring = of(io);
    uint64_t identity = urs_io_pack(URS_IO_SEND_ZC, 0, token);
    URS_ASSERT(fd >= 0 && bytes > 0);
    URS_ASSERT(!in_pool || data >= io->pool->memory);
    if (io_uring_sq_space_left(&uring->ring) == 0) {
        io->stats.sq_full++;
        return -EBUSY;
    }
    int32_t fault = urs_fault(URS_FAULT_ZERO_COPY);
    if (fault == 0)
        fault = urs_fault(URS_FAULT_SEND);
    if (urs_io_fail_at_once(&uring->faults, identity, fault))
        return 0;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL)
        return -EBUSY;  /* cannot happen: space was checked above; silences analysers */
    io_uring_prep_send_zc(sqe, fd, data, urs_fault_cut(fault, bytes), MSG_DONTWAIT | MSG_NOSIGNAL,
                          IORING_SEND_ZC_REPORT_USAGE);
    if (in_pool) {
        sqe->ioprio |= IORING_RECVSEND_FIXED_BUF;
        sqe->buf_index = 0;
    }
    io_uring_sqe_set_data64(sqe, identity);
    return 0;
}

static int uring_writable(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    struct io_uring_sqe *sqe = take_sqe(of(io));
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_poll_add(sqe, fd, POLLOUT);
    io_uring_sqe_set_data64(sqe, urs_io_pack(URS_IO_WRITABLE, generation, slot));
    return 0;
}

static int uring_watch(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool writable)
{
    uint64_t data = urs_io_pack(URS_IO_WATCH, generation, slot);
    if (urs_io_fail_at_once(&of(io)->faults, data, urs_fault(URS_FAULT_WATCH)))
        return 0;
    struct io_uring_sqe *sqe = take_sqe(of(io));
    if (sqe == NULL)
        return -EBUSY;
    /* One completion per request. A multishot poll reports only changes: a descriptor that was not read empty would
     * stay silent. A new request looks at the descriptor again. */
    io_uring_prep_poll_add(sqe, fd, writable ? POLLOUT : POLLIN);
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

static int uring_unwatch(struct urs_io *io, uint32_t slot, uint32_t generation, int fd)
{
    (void)fd;
    return cancel(of(io), urs_io_pack(URS_IO_WATCH, generation, slot));
}

static void uring_forget(struct urs_io *io, uint32_t slot, int fd)
{
    (void)io;
    (void)slot;
    (void)fd;
}

static int uring_submit(struct urs_io *io) { return submit_all(of(io)); }

static uint32_t uring_collect(struct urs_io *io, struct urs_completion *out, uint32_t room)
{
    struct uring *uring = of(io);
    uint32_t count = urs_io_collect_failed(&uring->faults, out, room);
    unsigned head, seen = 0;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(&uring->ring, head, cqe) {
        if (count == room)
            break;
        seen++;
        struct urs_completion *completion = &out[count];
        urs_io_unpack(cqe->user_data, completion);
        completion->result = cqe->res;
        completion->more = (cqe->flags & IORING_CQE_F_MORE) != 0;
        completion->buffer = URS_IO_NO_BUFFER;
        /* Only this flag says that the upper half of flags is one of our buffers; the result does not. */
        if ((cqe->flags & IORING_CQE_F_BUFFER) != 0) {
            completion->buffer = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
            urs_pool_taken(io->pool);
            URS_ASSERT(completion->buffer < io->pool->buffers && io->pool->in_use <= io->pool->buffers);
            URS_ASSERT(cqe->res < 0 || (size_t)cqe->res <= io->pool->buffer_bytes);
        }
        if (completion->kind == KIND_CANCEL)
            continue;
        if ((cqe->flags & IORING_CQE_F_NOTIF) != 0) {
            completion->kind = URS_IO_RELEASE;
            completion->result = ((unsigned)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED) != 0;
        }
        /* A poll also ends at the end of stream of a half-closed peer. Polling again at once would end at once, again
         * and again. */
        if (completion->kind == URS_IO_WRITABLE)
            completion->result = cqe->res > 0 && (cqe->res & (POLLOUT | POLLERR | POLLHUP)) == 0 ? -EAGAIN : 0;
        if (completion->kind == URS_IO_WAKE) {
            uring->wake_armed = false;
            urs_wake_clear(&uring->wake);
        }
        if (urs_io_keep_back(&uring->faults, completion))
            continue;
        if (urs_io_fail_multishot(&uring->faults, completion, cqe->user_data))
            cancel(uring, cqe->user_data);
        count++;
    }
    io_uring_cq_advance(&uring->ring, seen);
    return count;
}

/* Collects all completions that are due, on kernels that deliver them in portions: see URS_FAULT_TASK_WORK. */
static void run_task_work(struct uring *uring)
{
    unsigned flags = uring->enter_flags & ~(unsigned)IORING_ENTER_EXT_ARG;
    unsigned before;
    do {
        before = io_uring_cq_ready(&uring->ring);
        io_uring_enter2((unsigned)uring->ring.enter_ring_fd, 0, 0, flags, NULL, 0);
    } while (io_uring_cq_ready(&uring->ring) > before);
}

/* Waits for `count` completions, or, after `least_us` (needs IORING_FEAT_MIN_TIMEOUT), for one; at most timeout_ns. */
static int enter(struct uring *uring, int64_t timeout_ns, uint32_t count, uint32_t least_us)
{
    struct __kernel_timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct getevents argument = {.sigmask_bytes = _NSIG / 8, .least_us = least_us,
                                 .timespec = timeout_ns < 0 ? 0 : (uint64_t)(uintptr_t)&timeout};
    uring->io.stats.enters++;
    int result = urs_fault(URS_FAULT_ENTER);
    if (result == 0)
        result = io_uring_enter2((unsigned)uring->ring.enter_ring_fd, 0, timeout_ns == 0 ? 0 : count,
                                 uring->enter_flags, (sigset_t *)&argument, sizeof argument);
    if (urs_fault(URS_FAULT_TASK_WORK) != 0)
        run_task_work(uring);
    switch (result) {
    case -ETIME:    /* the time-out */
    case -EAGAIN:   /* the kernel is short of memory for a moment, or */
    case -EBUSY:    /* wants completions to be collected first: the next turn tries again */
        return 0;
    default:
        return result < 0 ? result : 0;  /* the caller handles -EINTR; -EBADR, a lost completion, ends the ring */
    }
}

static int uring_wait_for(struct urs_io *io, int64_t timeout_ns, uint32_t count, uint32_t more_us)
{
    struct uring *uring = of(io);
    int64_t more_ns = (int64_t)more_us * 1000;
    URS_ASSERT(count > 0);
    urs_io_count_wait(&uring->faults);
    if (!uring->wake_armed)
        arm_wake(uring);
    int error = submit_all(uring);
    if (error != 0)
        return error;
    if (IO_URING_READ_ONCE(*uring->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW)
        io->stats.cq_overflows++;
    else if (io_uring_cq_ready(&uring->ring) > 0 || urs_io_failed_waiting(&uring->faults))
        timeout_ns = 0;
    /* Entries that the kernel did not take would never complete: do not sleep long before the next attempt. */
    bool stuck = io_uring_sq_ready(&uring->ring) > 0 || !uring->wake_armed;
    if (stuck && (timeout_ns < 0 || timeout_ns > RETRY_NS))
        timeout_ns = RETRY_NS;
    if (timeout_ns >= 0 && timeout_ns <= more_ns)
        return enter(uring, timeout_ns, count, 0);
    if (more_us > 0 && (!uring->waits_for_several || urs_fault(URS_FAULT_MIN_WAIT) != 0)) {
        error = enter(uring, more_ns, count, 0);
        if (error != 0 || io_uring_cq_ready(&uring->ring) > 0)
            return error;
        return enter(uring, timeout_ns < 0 ? -1 : timeout_ns - more_ns, 1, 0);
    }
    return enter(uring, timeout_ns, count, more_us);
}

static int uring_wait(struct urs_io *io, int64_t timeout_ns) { return uring_wait_for(io, timeout_ns, 1, 0); }

static void uring_release(struct urs_io *io, uint16_t buffer)
{
    struct uring *uring = of(io);
    struct urs_pool *pool = io->pool;
    URS_ASSERT(buffer < pool->buffers && pool->in_use > 0);
    URS_ASSERT(uring->released < pool->buffers);
    io_uring_buf_ring_add(uring->buffers, urs_pool_buffer(pool, buffer), (unsigned)pool->buffer_bytes, buffer,
                          io_uring_buf_ring_mask(pool->buffers), (int)uring->released++);
    pool->in_use--;
}

static void uring_wake(struct urs_io *io) { urs_wake_write(&of(io)->wake); }

static int uring_wake_descriptor(const struct urs_io *io) { return ((const struct uring *)io)->wake.write_fd; }

const struct urs_io_operations urs_io_uring = {
    .name = "io_uring",
    /* A multishot receive waits again after it has taken all data. If one wake-up announced both the data and the
     * reset, no second wake-up follows. */
    .misses_resets = true,
    .open = uring_open,
    .start = uring_start,
    .disown = uring_disown,
    .close = uring_close,
    .accept = uring_accept,
    .accept_stop = uring_accept_stop,
    .receive = uring_receive,
    .receive_stop = uring_receive_stop,
    .send = uring_send,
    .send_zero_copy = uring_send_zero_copy,
    .writable = uring_writable,
    .watch = uring_watch,
    .unwatch = uring_unwatch,
    .forget = uring_forget,
    .submit = uring_submit,
    .collect = uring_collect,
    .wait = uring_wait,
    .wait_for = uring_wait_for,
    .release = uring_release,
    .wake = uring_wake,
    .wake_descriptor = uring_wake_descriptor,
};
