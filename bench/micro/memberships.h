/* The timing loop of memberships: sessions that join topics and leave them. */
#ifndef URS_MEMBERSHIPS_H
#define URS_MEMBERSHIPS_H

#include <stdint.h>

/* cdef: begin */

struct loop_topics;

/* Makes that many sessions without sockets, and topics, each with one member that stays. Returns NULL if there is no
 * memory. */
struct loop_topics *loop_topics_open(uint32_t sessions, uint32_t topics);

/* Every session joins `joins` topics, then every session leaves its own: session number s joins the topics from number
 * s * joins on, round the table. All are found by their ids first, as in the calls of the shim. Returns the nanoseconds
 * of all repeats, or -1 if a topic refused. */
int64_t loop_topics_visit(struct loop_topics *topics, uint32_t joins, uint64_t repeats);

void loop_topics_close(struct loop_topics *topics);

/* cdef: end */

#endif
