/* The timing loops of the microbenchmarks: no Python runs inside the timed part. Each loop repeats one call and returns
 * the nanoseconds of CPU time for all repeats, or -1 if the input was refused, since a refusal is fast. */
#ifndef URS_LOOPS_H
#define URS_LOOPS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* `count` payloads of `bytes` bytes, `stride` bytes apart; one repeat visits all of them in turn. A single small
 * payload would be read while its last stores are still in progress, which never happens in a server. */
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

/* Reads the headers of the frames that fill `bytes` bytes without gaps, as an engine does. */
int64_t loop_headers(const uint8_t *frames, size_t bytes, size_t repeats);

enum { LOOP_CONNECTIONS = 64 };

/* The bytes that connections received: `reads` buffers, `stride` bytes apart, each with the same frame `frames` times.
 * Read number LOOP_CONNECTIONS belongs to the first connection again, in a new turn. */
struct loop_reads {
    uint8_t *buffers;
    const uint8_t *frame;
    size_t frame_bytes;
    size_t frames;
    size_t reads;
    size_t stride;
    size_t answer_bytes;                 /* the bytes to send as the reply to one frame */
};

/* Copies every frame to the place where it was received, one by one: loop_engine does this before its clock starts. */
int64_t loop_receive(const struct loop_reads *reads, size_t repeats);

/* From received bytes to the list of bytes to send, with a separate reply per message. */
int64_t loop_engine(const struct loop_reads *reads, size_t repeats);

/* cdef: end */

#endif
