/* The common parts of the servers without any protocol: a listening socket, one ring, and a pool of receive buffers. A
 * completion is tagged with its kind, the descriptor, and for sends the buffer that is being sent. Each server is one
 * program, so everything here is static. */
#ifndef BARE_H
#define BARE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/base.h"
#include "../load/ring.h"

enum { BUFFERS = 64, DESCRIPTORS_MAX = 1 << 16 };

enum kind { KIND_ACCEPT, KIND_RECEIVE, KIND_SEND };

static struct ring ring;
static struct pool pool;

static uint64_t tag(enum kind kind, int fd, unsigned buffer)
{
    return (uint64_t)buffer << 40 | (uint64_t)(unsigned)fd << 8 | kind;
}

static int listen_on(const char *host, unsigned port)
{
    const int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("the host must be an IPv4 address, not \"%s\"", host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* accepted sockets inherit it */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        fail("cannot listen on %s:%u: %s", host, port, strerror(errno));
    return fd;
}

static void arm_accept(int listener)
{
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, tag(KIND_ACCEPT, listener, 0));
}

static void arm_receive(int fd)
{
    struct io_uring_sqe *sqe = ring_sqe(&ring);
    pool_receive(&pool, sqe, fd);
    io_uring_sqe_set_data64(sqe, tag(KIND_RECEIVE, fd, 0));
}

static void on_accept(int listener, const struct io_uring_cqe *cqe)
{
    if (cqe->res >= DESCRIPTORS_MAX)
        fail("more than %d descriptors", DESCRIPTORS_MAX);
    if (cqe->res >= 0)
        arm_receive(cqe->res);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        arm_accept(listener);
}

/* A full socket buffer does not occur in the loads that this server is for, so sending the rest may block. */
static void send_rest(int fd, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        bytes += sent;
        count -= (size_t)sent;
    }
}

/* Opens the ring and the pool, listens as the command line says, and says so. */
static void open_server(int argc, char **argv, unsigned submissions, unsigned completions, unsigned buffer_bytes)
{
    if (argc != 3)
        fail("usage: %s HOST PORT", argv[0]);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    ring_open(&ring, submissions, completions);
    pool_open(&pool, &ring, 0, POOL_READ, BUFFERS, buffer_bytes);
    arm_accept(listen_on(argv[1], (unsigned)atoi(argv[2])));
    printf("listening %s\n", argv[2]);
    fflush(stdout);
}

#endif
