/* The contract of an I/O backend: sockets in, completions out, for io_uring and epoll alike. A backend never sees a
 * frame. Every call but urs_io_wake belongs to the thread that called start. */
#ifndef URS_IO_H
#define URS_IO_H

#include <sys/uio.h>

#include "base.h"
#include "pool.h"

/* cdef: begin */

enum urs_io_kind {
    URS_IO_NONE = 0,
    URS_IO_ACCEPT = 1,                   /* result: a descriptor, or -errno */
    URS_IO_RECEIVE = 2,                  /* result: bytes in `buffer`, 0 at the end of the stream, or -errno */
    URS_IO_SEND = 3,                     /* result: bytes the socket took, or -errno (-EAGAIN: it is full) */
    URS_IO_WRITABLE = 4,                 /* the socket can take bytes again, or has failed: send to find out; result
                                            -EAGAIN: it cannot be waited for, try again in a while */
    URS_IO_WAKE = 5,                     /* urs_io_wake was called, once or several times */
    URS_IO_SEND_ZC = 6,                  /* as URS_IO_SEND, of a zero-copy send; more: an URS_IO_RELEASE follows */
    URS_IO_RELEASE = 7                   /* a zero-copy send's bytes are free again; result 1: they were copied */
};

/* What a completion obliges its receiver to do. */
enum urs_io_fate {
    URS_FATE_DATA = 0,                   /* bytes, or a descriptor */
    URS_FATE_END = 1,                    /* the peer will send no more */
    URS_FATE_AGAIN = 2,                  /* arm or send once more, now (sends: once the socket is writable) */
    URS_FATE_PARK = 3,                   /* arm once more when receive buffers have come back */
    URS_FATE_LATER = 4,                  /* a shortage of the system's: once more after a pause */
    URS_FATE_STOPPED = 5,                /* we cancelled it */
    URS_FATE_LOST = 6                    /* the socket is of no more use */
};

enum urs_io_limit { URS_IO_NO_BUFFER = 0xffff, URS_IO_VECTORS_MAX = 64 };

/* Why a backend could not be opened, and what it settled for where it could. */
struct urs_io_report {
    int32_t error;                       /* 0 or the -errno of the last attempt */
    const char *stage;                   /* the step that failed, a static string; NULL on success */
    uint32_t ring_entries;               /* submission queue entries in use; 0 for epoll */
    uint32_t setup_flags;                /* IORING_SETUP_* in use */
    uint32_t features;                   /* IORING_FEAT_* of this kernel */
    bool reduced;                        /* a smaller ring, or fewer flags, than asked for */
    bool zero_copy;                      /* the pool is registered with the kernel, to be sent from without a copy */
};

/* Counters, all since open. */
struct urs_io_stats {
    uint64_t enters;                     /* io_uring_enter or epoll_wait calls */
    uint64_t cq_overflows;
    uint64_t sq_full;
};

/* cdef: end */

struct urs_completion {
    uint32_t slot;
    uint32_t generation;                 /* the low 24 bits */
    int32_t result;
    uint16_t buffer;                     /* URS_IO_NO_BUFFER for none; else the caller's, to be released */
    uint8_t kind;                        /* enum urs_io_kind */
    bool more;                           /* the request stays armed; false: this was its last completion */
};

struct urs_io {
    const struct urs_io_operations *operations;
    struct urs_pool *pool;
    struct urs_io_stats stats;
};

struct urs_io_operations {
    const char *name;

    /* collect gives every URS_IO_SEND before all else. */
    bool sends_first;

    /* A receive that stays armed may miss a reset that came together with data: somebody has to look for it. */
    bool misses_resets;

    /* Makes a backend. `ring_entries` and `zero_copy` are wishes. Returns 0 with *io set, or -errno; *report is filled
     * in either way. May be called by a thread other than the one that will run it. */
    int (*open)(struct urs_io **io, struct urs_pool *pool, uint32_t ring_entries, bool zero_copy,
                struct urs_io_report *report);

    /* Makes the calling thread the owner; armed requests go out from now on. Returns 0 or -errno. */
    int (*start)(struct urs_io *io);

    /* The thread that called start has ended, or another one is about to call close: from now on only collect and close
     * do something. NULL where every thread may do everything. */
    void (*disown)(struct urs_io *io);

    /* Ends everything. Sockets stay open: they are their owners'. */
    void (*close)(struct urs_io *io);

    /* Arms accept on a listening socket: one URS_IO_ACCEPT a connection until one comes with more == false. */
    int (*accept)(struct urs_io *io, uint32_t slot, int fd);

    /* Ends accepting on that socket; a last completion with -ECANCELED follows. */
    int (*accept_stop)(struct urs_io *io, uint32_t slot, int fd);

    /* Arms receiving: URS_IO_RECEIVE completions until one comes with more == false. `once`: a single completion. */
    int (*receive)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once);

    /* Asks for the last completion of receive; data that came before it is still delivered. */
    int (*receive_stop)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd);

    /* Sends without waiting. The vectors must stay until submit returns, and so must the bytes; then exactly one
     * URS_IO_SEND is there to collect. Returns -EBUSY where submit and collect must come first. */
    int (*send)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, const struct iovec *vectors,
                uint32_t count);

    /* Sends contiguous bytes without copying them: they must stay, unchanged, until URS_IO_RELEASE. Its completions
     * carry `token` for a slot. `in_pool`: the bytes lie in the receive pool. NULL where there is no such thing; else
     * returns as send does. */
    int (*send_zero_copy)(struct urs_io *io, uint32_t token, int fd, const uint8_t *data, size_t bytes, bool in_pool);

    /* Asks for one URS_IO_WRITABLE. Needs an armed receive or none; at most one at a time a socket. */
    int (*writable)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd);

    /* The descriptor is about to be closed: nothing is armed on it any more. */
    void (*forget)(struct urs_io *io, uint32_t slot, int fd);

    /* Hands everything armed or sent to the kernel; afterwards each send has completed. Returns 0 or -errno. */
    int (*submit)(struct urs_io *io);

    /* Fills `out` with completions that are there, without waiting; returns their number. */
    uint32_t (*collect)(struct urs_io *io, struct urs_completion *out, uint32_t room);

    /* Waits until a completion is there, at most timeout_ns (negative: without end). Returns 0 (also on time-out),
     * -EINTR, or -errno. */
    int (*wait)(struct urs_io *io, int64_t timeout_ns);

    /* Gives a receive buffer back. */
    void (*release)(struct urs_io *io, uint16_t buffer);

    /* Makes wait return, from any thread or a signal handler; calls in a burst cost one system call. */
    void (*wake)(struct urs_io *io);

    /* A descriptor that may be written to (one byte) instead of calling wake: for signal.set_wakeup_fd. */
    int (*wake_descriptor)(const struct urs_io *io);
};

extern const struct urs_io_operations urs_io_uring;
extern const struct urs_io_operations urs_io_epoll;

/* The rows of the errno tables. */
enum urs_io_fate urs_io_accept_fate(int32_t result);
enum urs_io_fate urs_io_receive_fate(int32_t result);
enum urs_io_fate urs_io_send_fate(int32_t result);

/* Sets O_NONBLOCK where it is not set yet. It is a flag of the open file description, which other processes may share:
 * only epoll needs it, to accept; accept4(2) has no flag of its own that would say so. Sends and receives say it with
 * each call, and io_uring does not look at it. Returns 0 or -errno. */
int urs_io_set_nonblocking(int fd);

/* Bytes that the socket has taken, and the peer's side has not acknowledged; 0 where that cannot be told. */
uint32_t urs_io_unsent_bytes(int fd);

enum urs_io_input { URS_INPUT_NONE = 0, URS_INPUT_WAITS = 1, URS_INPUT_ENDS = 2 };

/* What a receive would find now, without taking it: nothing, bytes or an end of the stream, or what is left before a
 * reset. */
enum urs_io_input urs_io_input_waiting(int fd);

/* Ends a connection in both directions, whoever else holds the socket; armed requests complete. With `reset` the peer
 * sees an error instead of an end of the stream, and unsent bytes are dropped (TCP; other sockets have no reset). */
void urs_io_disconnect(int fd, bool reset);

/* The wake-up that both backends share: a pipe (signal.set_wakeup_fd writes single bytes, which an eventfd would
 * refuse), and a flag so that a burst writes once. */
struct urs_wake {
    int read_fd;
    int write_fd;
    uint32_t pending;
};

int urs_wake_open(struct urs_wake *wake);
void urs_wake_close(struct urs_wake *wake);
void urs_wake_write(struct urs_wake *wake);
void urs_wake_clear(struct urs_wake *wake);

/* A request's identity in 64 bits: kind, generation, slot; never a pointer. */
static inline uint64_t urs_io_pack(uint8_t kind, uint32_t generation, uint32_t slot)
{
    return (uint64_t)kind << 56 | (uint64_t)(generation & 0xffffff) << 32 | slot;
}

static inline void urs_io_unpack(uint64_t data, struct urs_completion *completion)
{
    completion->kind = (uint8_t)(data >> 56);
    completion->generation = (uint32_t)(data >> 32) & 0xffffff;
    completion->slot = (uint32_t)data;
}

#endif
