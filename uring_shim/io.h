/* The interface of an I/O backend, the same for io_uring and epoll: sockets in, completions out. A backend never sees a
 * frame. Unless a comment says otherwise, only the thread that called `start` may call a function. */
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
    URS_IO_SEND = 3,                     /* result: bytes the socket took, or -errno (-EAGAIN: the socket is full) */
    URS_IO_WRITABLE = 4,                 /* the socket is writable or has failed; a send tells which. result -EAGAIN:
                                            waiting is impossible, retry later */
    URS_IO_WAKE = 5,                     /* urs_io_operations.wake was called, once or several times */
    URS_IO_SEND_ZC = 6,                  /* like URS_IO_SEND, for a zero-copy send; `more` means that URS_IO_RELEASE
                                            will follow */
    URS_IO_RELEASE = 7,                  /* the bytes of a zero-copy send may be reused; result 1: the kernel copied
                                            them */
    URS_IO_WATCH = 8                     /* a watched descriptor is ready or has failed. result -errno: it could not be
                                            watched, retry later */
};

/* The action that a completion requires from the reactor. */
enum urs_io_fate {
    URS_FATE_DATA = 0,                   /* use the bytes or the descriptor */
    URS_FATE_END = 1,                    /* the peer has ended its side of the stream */
    URS_FATE_AGAIN = 2,                  /* arm or send again now (sends: once the socket is writable) */
    URS_FATE_PARK = 3,                   /* arm again when receive buffers have been released */
    URS_FATE_LATER = 4,                  /* the system lacks memory or descriptors: retry after URS_DELAY_MS */
    URS_FATE_STOPPED = 5,                /* we cancelled it */
    URS_FATE_LOST = 6                    /* the socket is unusable */
};

enum urs_io_limit { URS_IO_NO_BUFFER = 0xffff, URS_IO_VECTORS_MAX = 64 };

/* Why a backend could not be opened, or which settings it uses if it was opened. */
struct urs_io_report {
    int32_t error;                       /* 0 or the -errno of the last attempt */
    const char *stage;                   /* the step that failed, a static string; NULL on success */
    uint32_t ring_entries;               /* submission queue entries in use; 0 for epoll */
    uint32_t setup_flags;                /* IORING_SETUP_* in use */
    uint32_t features;                   /* IORING_FEAT_* of this kernel */
    bool reduced;                        /* the ring is smaller, or has fewer flags, than requested */
    bool zero_copy;                      /* the pool is registered with the kernel for zero-copy sends */
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
    uint16_t buffer;                     /* URS_IO_NO_BUFFER for none; the caller must release any other buffer */
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

    /* collect returns every URS_IO_SEND before other completions. */
    bool sends_first;

    /* A receive that stays armed may miss a reset that came together with data: the reactor must check for it. */
    bool misses_resets;

    /* Opens a backend. `ring_entries` and `zero_copy` are requests, which it may not fulfil. Returns 0 with *io set, or
     * -errno; *report is filled in either way. The calling thread need not be the one that will run the backend. */
    int (*open)(struct urs_io **io, struct urs_pool *pool, uint32_t ring_entries, bool zero_copy,
                struct urs_io_report *report);

    /* Makes the calling thread the owner. Requests that were armed earlier are submitted from now on. Returns 0 or
     * -errno. */
    int (*start)(struct urs_io *io);

    /* The thread that called `start` has ended, or another thread is about to call `close`: from now on only `collect`
     * and `close` have an effect. NULL if every thread may call everything. */
    void (*disown)(struct urs_io *io);

    /* Frees the backend. Sockets stay open: their owners close them. */
    void (*close)(struct urs_io *io);

    /* Arms accept on a listening socket: one URS_IO_ACCEPT per connection, until one comes with more == false. */
    int (*accept)(struct urs_io *io, uint32_t slot, int fd);

    /* Ends accepting on that socket; a last completion with -ECANCELED follows. */
    int (*accept_stop)(struct urs_io *io, uint32_t slot, int fd);

    /* Arms a receive: URS_IO_RECEIVE completions until one comes with more == false. `once`: a single completion. */
    int (*receive)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool once);

    /* Requests the last completion of a receive; data that arrived earlier is still delivered. */
    int (*receive_stop)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd);

    /* Sends without waiting. `vectors` and their bytes must stay valid until `submit` returns; exactly one URS_IO_SEND
     * can then be collected. Returns -EBUSY if the caller must first submit and collect. */
    int (*send)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, const struct iovec *vectors,
                uint32_t count);

    /* Sends contiguous bytes without a copy: they must stay valid and unchanged until URS_IO_RELEASE. Its completions
     * carry `token` as their slot. `in_pool`: the bytes lie in the receive pool. NULL if the backend has no zero copy.
     * Returns the same values as `send`. */
    int (*send_zero_copy)(struct urs_io *io, uint32_t token, int fd, const uint8_t *data, size_t bytes, bool in_pool);

    /* Requests one URS_IO_WRITABLE. Works whether or not a receive is armed. At most one may be outstanding per
     * socket. */
    int (*writable)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd);

    /* Watches a descriptor that is no socket of a session: URS_IO_WATCH completions while it is readable (`writable`:
     * writable), until one comes with more == false. One descriptor has one watch. Returns 0 or -errno. */
    int (*watch)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd, bool writable);

    /* Ends a watch; its last completion follows. */
    int (*unwatch)(struct urs_io *io, uint32_t slot, uint32_t generation, int fd);

    /* Forgets a descriptor that is about to be closed. Nothing may be armed on it. */
    void (*forget)(struct urs_io *io, uint32_t slot, int fd);

    /* Hands all armed requests and all sends to the kernel; afterwards each send has completed. Returns 0 or -errno. */
    int (*submit)(struct urs_io *io);

    /* Copies completions that have arrived to `out`, without waiting; returns their number. */
    uint32_t (*collect)(struct urs_io *io, struct urs_completion *out, uint32_t room);

    /* Waits until a completion has arrived, at most timeout_ns (negative: no limit). Returns 0 (also on time-out),
     * -EINTR, or -errno. */
    int (*wait)(struct urs_io *io, int64_t timeout_ns);

    /* Like wait. During its first `more_us` microseconds it ends only if `count` completions have arrived. A backend that
     * cannot wait for several completions may take the whole `more_us`. */
    int (*wait_for)(struct urs_io *io, int64_t timeout_ns, uint32_t count, uint32_t more_us);

    /* Returns a receive buffer to the pool. */
    void (*release)(struct urs_io *io, uint16_t buffer);

    /* Makes `wait` return. Any thread and any signal handler may call it; several calls in a row cost one system
     * call. */
    void (*wake)(struct urs_io *io);

    /* A descriptor that may be written to (one byte) instead of calling wake: for signal.set_wakeup_fd. */
    int (*wake_descriptor)(const struct urs_io *io);
};

extern const struct urs_io_operations urs_io_uring;
extern const struct urs_io_operations urs_io_epoll;

/* Map a result to the action that it requires, by the errno tables. */
enum urs_io_fate urs_io_accept_fate(int32_t result);
enum urs_io_fate urs_io_receive_fate(int32_t result);
enum urs_io_fate urs_io_send_fate(int32_t result);

/* Sets O_NONBLOCK if it is not set. The flag belongs to the open file description, which other processes may share.
 * Only epoll needs it, and only for accept, because accept4(2) has no flag that makes a single call non-blocking. Sends
 * and receives pass such a flag with each call, and io_uring ignores O_NONBLOCK. Returns 0 or -errno. */
int urs_io_set_nonblocking(int fd);

/* Returns the number of bytes that the socket has taken and the peer's system has not acknowledged; 0 if that is
 * unknown. */
uint32_t urs_io_unsent_bytes(int fd);

enum urs_io_input { URS_INPUT_NONE = 0, URS_INPUT_WAITS = 1, URS_INPUT_ENDS = 2 };

/* Tells the result of a receive without receiving: nothing; bytes or the end of the stream; or bytes in front of a
 * reset. */
enum urs_io_input urs_io_input_waiting(int fd);

/* Ends a connection in both directions, even if other descriptors refer to the socket; armed requests complete. With
 * `reset` the peer sees an error instead of an end of stream, and unsent bytes are dropped (only TCP; other sockets
 * have no reset). */
void urs_io_disconnect(int fd, bool reset);

/* The wake-up that both backends share: a pipe, because signal.set_wakeup_fd writes single bytes, which an eventfd
 * would refuse; and a flag, so that several wake-ups in a row write once. */
struct urs_wake {
    int read_fd;
    int write_fd;
    uint32_t pending;
};

int urs_wake_open(struct urs_wake *wake);
void urs_wake_close(struct urs_wake *wake);
void urs_wake_write(struct urs_wake *wake);
void urs_wake_clear(struct urs_wake *wake);

/* The identity of a request in 64 bits: kind, generation and slot, never a pointer. */
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
