/* Code that both backends share: the errno tables, functions that examine or end a socket, and the wake-up pipe. */
#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault.h"

struct row {
    int error;
    enum urs_io_fate fate;
};

/* accept(2). Network errors reported by accept concern only that one connection: accept the next one. Any other error
 * concerns our listening socket: retry after URS_DELAY_MS, because only that can help. The retries are counted in
 * accept_pauses, so they are visible; a server that silently stopped accepting would not be. */
static const struct row accept_rows[] = {
    {EAGAIN, URS_FATE_AGAIN},       {EINTR, URS_FATE_AGAIN},     {ECONNABORTED, URS_FATE_AGAIN},
    {EPERM, URS_FATE_AGAIN},        {EPROTO, URS_FATE_AGAIN},    {ENETDOWN, URS_FATE_AGAIN},
    {ENOPROTOOPT, URS_FATE_AGAIN},  {EHOSTDOWN, URS_FATE_AGAIN}, {ENONET, URS_FATE_AGAIN},
    {EHOSTUNREACH, URS_FATE_AGAIN}, {EOPNOTSUPP, URS_FATE_LATER}, {ENETUNREACH, URS_FATE_AGAIN},
    {EMFILE, URS_FATE_LATER},       {ENFILE, URS_FATE_LATER},    {ENOBUFS, URS_FATE_LATER},
    {ENOMEM, URS_FATE_LATER},       {ECANCELED, URS_FATE_STOPPED},
};

/* recv(2), and errors of io_uring itself. ENOBUFS means an empty buffer ring (the data stays in the socket). ENOMEM is
 * a kernel bug of 2025; a retry gets past it. */
static const struct row receive_rows[] = {
    {EAGAIN, URS_FATE_AGAIN}, {EINTR, URS_FATE_AGAIN},       {ENOBUFS, URS_FATE_PARK},
    {ENOMEM, URS_FATE_LATER}, {ECANCELED, URS_FATE_STOPPED},
};

/* send(2). */
static const struct row send_rows[] = {
    {EAGAIN, URS_FATE_AGAIN},  {EINTR, URS_FATE_AGAIN},  {ENOBUFS, URS_FATE_LATER},
    {ENOMEM, URS_FATE_LATER},  {ECANCELED, URS_FATE_AGAIN},
};

static enum urs_io_fate find(const struct row *rows, size_t count, int error, enum urs_io_fate others)
{
    for (size_t index = 0; index < count; index++)
        if (rows[index].error == error)
            return rows[index].fate;
    return others;
}

enum urs_io_fate urs_io_accept_fate(int32_t result)
{
    return result >= 0 ? URS_FATE_DATA : find(accept_rows, URS_COUNT(accept_rows), -result, URS_FATE_LATER);
}

enum urs_io_fate urs_io_receive_fate(int32_t result)
{
    if (result >= 0)
        return result > 0 ? URS_FATE_DATA : URS_FATE_END;
    return find(receive_rows, URS_COUNT(receive_rows), -result, URS_FATE_LOST);
}

enum urs_io_fate urs_io_send_fate(int32_t result)
{
    return result >= 0 ? URS_FATE_DATA : find(send_rows, URS_COUNT(send_rows), -result, URS_FATE_LOST);
}

int urs_io_set_nonblocking(int fd)
{
    URS_ASSERT(fd >= 0);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || ((flags & O_NONBLOCK) == 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0))
        return -errno;
    return 0;
}

uint32_t urs_io_unsent_bytes(int fd)
{
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? (uint32_t)bytes : 0;
}

enum urs_io_input urs_io_input_waiting(int fd)
{
    /* MSG_PEEK must not be used: it would take the socket's error away from the armed receive. */
    URS_ASSERT(fd >= 0);  /* poll ignores a negative descriptor */
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    if (poll(&polled, 1, 0) <= 0 || (polled.revents & POLLIN) == 0)
        return URS_INPUT_NONE;
    return (polled.revents & (POLLERR | POLLHUP)) != 0 ? URS_INPUT_ENDS : URS_INPUT_WAITS;
}

void urs_io_disconnect(int fd, bool reset)
{
    /* connect(2) to AF_UNSPEC resets at once. SO_LINGER would work only at the last close of the socket, but an armed
     * receive or another process may keep it open. The shutdown that ends an armed receive would send the FIN that must
     * not be sent. */
    URS_ASSERT(fd >= 0);
    const struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
    if (!reset || connect(fd, &unspecified, sizeof unspecified) != 0)
        (void)urs_sys_shutdown(fd, SHUT_RDWR);  /* fails if the peer is gone already, which is no error here */
}

int urs_wake_open(struct urs_wake *wake)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return -errno;
    /* Only the writing end is non-blocking: a full pipe means that a wake-up is on its way already. io_uring reads the
     * other end. */
    if (fcntl(fds[1], F_SETFL, O_NONBLOCK) != 0) {
        int error = -errno;
        close(fds[0]);
        close(fds[1]);
        return error;
    }
    URS_ASSERT(fds[0] >= 0 && fds[1] >= 0);
    *wake = (struct urs_wake){.read_fd = fds[0], .write_fd = fds[1]};
    return 0;
}

void urs_wake_close(struct urs_wake *wake)
{
    URS_ASSERT(wake->read_fd >= 0 && wake->write_fd >= 0);  /* closing twice could close a descriptor of another owner */
    close(wake->read_fd);
    close(wake->write_fd);
    wake->read_fd = wake->write_fd = -1;
}

void urs_wake_write(struct urs_wake *wake)
{
    if (__atomic_exchange_n(&wake->pending, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    /* EAGAIN needs no action: the bytes in the pipe will wake the reader. */
    while (write(wake->write_fd, "", 1) < 0 && errno == EINTR)
        ;
}

void urs_wake_clear(struct urs_wake *wake)
{
    /* An exchange, not a plain store: a thread that found the flag set wrote no byte, and its earlier writes must be
     * visible after this line. */
    __atomic_exchange_n(&wake->pending, 0, __ATOMIC_ACQ_REL);
}
