/* Timed sends on one ring. One measurement is a burst, from its first entry in the submission queue until the last
 * buffer may be written again. Reading from the receiver is not timed. */
#ifndef URS_SENDS_H
#define URS_SENDS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* Sixteen small packets fit into the initial receive buffer of a connection. */
enum { LOOP_SENDS_MAX = 16, LOOP_SENDS_BYTES_MAX = 1048576 };

enum loop_send_kind { LOOP_SEND, LOOP_SEND_ZC, LOOP_SEND_ZC_FIXED };

/* A burst: `count` sends of `bytes` bytes, each from its own part of the buffer, in one turn of the ring. At most
 * LOOP_SENDS_MAX sends, and at most LOOP_SENDS_BYTES_MAX bytes together. */
struct loop_sends {
    int sender;                          /* the two ends of a TCP connection */
    int receiver;
    enum loop_send_kind kind;
    size_t bytes;
    size_t count;
    uint64_t notified;                   /* notifications so far, */
    uint64_t copied;                     /* and how many of them said that the kernel copied the bytes anyway */
};

struct loop_ring;

/* Both return 0 or -errno. LOOP_SEND_ZC_FIXED needs loop_ring_register. */
int loop_ring_open(struct loop_ring **ring);
int loop_ring_register(struct loop_ring *ring);
void loop_ring_close(struct loop_ring *ring);

/* Returns the nanoseconds that `repeats` bursts took, or -errno; -ENOBUFS: a burst does not fit into the buffers of the
 * sockets. */
int64_t loop_send(struct loop_ring *ring, struct loop_sends *sends, size_t repeats);

/* cdef: end */

#endif
