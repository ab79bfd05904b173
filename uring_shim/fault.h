/* The system calls of the backends that tests make fail. In the ordinary build each is the call itself; the test
 * build (URS_FAULTS) asks urs_fault first. On io_uring a request is a call when it is armed, and once more with each
 * completion that leaves it armed: the kernel then tries again on its own. */
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
    URS_FAULT_ARM = 5,                   /* a submission queue entry to be had; epoll_ctl */
    URS_FAULT_NOTIFY = 6,                /* the kernel is done with a zero-copy send's bytes; the fault is a number of
                                            turns that it is said later by */
    URS_FAULT_TASK_WORK = 7,             /* io_uring: any fault here makes a wait take in everything that is due, as
                                            kernels before 6.13 do; later ones take about 20 completions at a time */
    URS_FAULT_SHUTDOWN = 8,              /* shutdown: the socket stays as it is */
    URS_FAULT_ZERO_COPY = 9,             /* io_uring's zero-copy sends, which are calls of URS_FAULT_SEND too */
    URS_FAULT_GROW = 10,                 /* more room for completions that wait to be handled */
    URS_FAULT_POLL_FIRST = 11,           /* io_uring: any fault here makes a receive miss a reset that is there already,
                                            as it may whenever data and a reset come together */
    URS_FAULT_POINTS = 12
};

/* Makes `count` calls of `point`, from the `from`-th on (counted from 1, beginning now), fail with `fault`: -errno, or
 * a number of bytes that sends and receives are cut to. Returns 0, -EINVAL, or -ENOTSUP in the ordinary build. */
int urs_fault_plan(int point, uint64_t from, uint64_t count, int32_t fault);

/* How many faults of the present plan have happened. */
uint64_t urs_fault_injected(int point);

/* cdef: end */

#ifdef URS_FAULTS
/* The fault due at this call of `point`: 0 for none, -errno, or the number of bytes to cut a send or receive to. */
int32_t urs_fault(enum urs_fault_point point);
#else
static inline int32_t urs_fault(enum urs_fault_point point)
{
    (void)point;
    return 0;
}
#endif

/* Makes the call fail with errno set if a fault is due. */
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
