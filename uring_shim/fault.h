/* The system calls of the backends that tests can make fail. In the ordinary build each function is only the call; the
 * test build (URS_FAULTS) asks urs_fault first. On io_uring one request counts as several calls: one when it is armed,
 * and one more per completion that leaves it armed (multishot), because the kernel then tries again on its own. */
#ifndef URS_FAULT_H
#define URS_FAULT_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

/* cdef: begin */

enum urs_fault_point {
    URS_FAULT_ACCEPT = 0,
    URS_FAULT_RECEIVE = 1,
    URS_FAULT_SEND = 2,
    URS_FAULT_ENTER = 3,                 /* io_uring_enter, epoll_wait */
    URS_FAULT_SETUP = 4,                 /* io_uring_setup, and enabling the ring */
    URS_FAULT_ARM = 5,                   /* taking a submission queue entry; epoll_ctl */
    URS_FAULT_NOTIFY = 6,                /* the kernel no longer needs the bytes of a zero-copy send; the fault is the
                                            number of turns by which this notification is delayed */
    URS_FAULT_TASK_WORK = 7,             /* io_uring: any fault here makes a wait take in all completions that are due,
                                            as kernels before 6.13 do; newer kernels take in about 20 at a time */
    URS_FAULT_SHUTDOWN = 8,              /* shutdown: the socket stays unchanged */
    URS_FAULT_ZERO_COPY = 9,             /* io_uring's zero-copy sends; they count as calls of URS_FAULT_SEND too */
    URS_FAULT_GROW = 10,                 /* growing the array of completions that wait to be handled */
    URS_FAULT_POLL_FIRST = 11,           /* io_uring: any fault here makes a receive miss a reset that has arrived
                                            already, as it may whenever data and a reset arrive together */
    URS_FAULT_WATCH = 12,                /* watching a descriptor of others */
    URS_FAULT_DEFLATE = 13,              /* allocating a stream of permessage-deflate, or a part of one */
    URS_FAULT_MIN_WAIT = 14,             /* io_uring: any fault here makes a wait for several completions behave as on
                                            kernels before 6.12 */
    URS_FAULT_POINTS = 15
};

/* Makes `count` calls of `point` fail with `fault`, from the `from`-th call on (counted from 1, beginning now). `fault`
 * is -errno, or the number of bytes to which sends and receives are cut. Returns 0, -EINVAL, or -ENOTSUP in the
 * ordinary build. */
int urs_fault_plan(int point, uint64_t from, uint64_t count, int32_t fault);

/* Returns how many faults of the present plan have happened. */
uint64_t urs_fault_injected(int point);

/* cdef: end */

#ifdef URS_FAULTS
/* Returns the fault for this call of `point`: 0 for none, -errno, or the number of bytes to which a send or receive is
 * cut. */
int32_t urs_fault(enum urs_fault_point point);
#else
static inline int32_t urs_fault(enum urs_fault_point point)
{
    (void)point;
    return 0;
}
#endif

/* Sets errno and returns true if `fault` is an error, so that the call must fail. */
static inline bool urs_fault_errno(int32_t fault)
{
    if (fault < 0)
        errno = -fault;
    return fault < 0;
}

static inline size_t urs_fault_cut(int32_t fault, size_t bytes)
{
    return fault > 0 && (size_t)fault < bytes ? (size_t)fault : bytes;
}

static inline int urs_sys_accept(int fd)
{
    return urs_fault_errno(urs_fault(URS_FAULT_ACCEPT)) ? -1 : accept4(fd, NULL, NULL, SOCK_CLOEXEC);
}

static inline ssize_t urs_sys_recv(int fd, void *buffer, size_t bytes)
{
    int32_t fault = urs_fault(URS_FAULT_RECEIVE);
    return urs_fault_errno(fault) ? -1 : recv(fd, buffer, urs_fault_cut(fault, bytes), MSG_DONTWAIT);
}

static inline ssize_t urs_sys_send(int fd, const void *data, size_t bytes)
{
    int32_t fault = urs_fault(URS_FAULT_SEND);
    return urs_fault_errno(fault) ? -1 : send(fd, data, urs_fault_cut(fault, bytes), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static inline int urs_sys_shutdown(int fd, int how)
{
    return urs_fault_errno(urs_fault(URS_FAULT_SHUTDOWN)) ? -1 : shutdown(fd, how);
}

static inline ssize_t urs_sys_sendmsg(int fd, const struct msghdr *message)
{
    int32_t fault = urs_fault(URS_FAULT_SEND);
    if (fault > 0)
        return urs_sys_send(fd, message->msg_iov->iov_base, urs_fault_cut(fault, message->msg_iov->iov_len));
    return urs_fault_errno(fault) ? -1 : sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

#endif
