/* The timing loops of the microbenchmarks: what is timed holds no Python. Each repeats one call and returns the
 * nanoseconds of CPU time that all repeats took, or -1 if the input was refused, since refusing is fast. */
#ifndef URS_LOOPS_H
#define URS_LOOPS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* `count` payloads of `bytes` bytes, `stride` bytes apart, which one repeat visits in turn. A single small one would be
 * read while its last stores are still under way, which no server's payload is. */
struct loop_payloads {
    uint8_t *target;
    const uint8_t *source;
    size_t bytes;
    size_t count;
    size_t stride;
};

int64_t loop_memcpy(const struct loop_payloads *payloads, size_t repeats);
int64_t loop_mask(const struct loop_payloads *payloads, size_t repeats);

int64_t loop_utf8(const uint8_t *text, size_t bytes, size_t repeats);

/* Walks over the frames that fill `bytes` bytes one behind the other, as an engine does. */
int64_t loop_headers(const uint8_t *frames, size_t bytes, size_t repeats);

enum { LOOP_CONNECTIONS = 64 };

/* What connections received: `reads` buffers, `stride` bytes apart, of `frames` times the same frame each. The read
 * behind LOOP_CONNECTIONS others is the first connection's again, in a turn of its own. */
struct loop_reads {
    uint8_t *buffers;
    const uint8_t *frame;
    size_t frame_bytes;
    size_t frames;
    size_t reads;
    size_t stride;
    size_t answer_bytes;                 /* what is to be sent in answer to one frame */
};

/* Copies every frame to where it was received, one by one: what loop_engine does before its clock starts. */
int64_t loop_receive(const struct loop_reads *reads, size_t repeats);

/* From bytes received to the list of bytes to send, every message answered by itself. */
int64_t loop_engine(const struct loop_reads *reads, size_t repeats);

/* cdef: end */

#endif
