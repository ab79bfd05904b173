/* One message to many sessions: it is framed once, and every session's list of segments refers to that frame. */
#ifndef URS_PUBLISH_H
#define URS_PUBLISH_H

#include "prepared.h"
#include "reactor.h"

/* cdef: begin */

enum urs_publish_limit { URS_PUBLISH_BYTES_MAX = 0x7fffff00 };  /* the largest payload */

/* The id of no session. */
enum urs_publish_skip { URS_SKIP_NONE = 0 };

/* Queues a message for every member of a topic except the session `skip`, after the events before `index` are applied.
 * The topic's on_full decides about members whose backlog is full. Returns the number of sessions that it was addressed
 * to, those that it was left out for included. Returns URS_ERROR_STALE for a topic that is gone, -EMSGSIZE for more than
 * URS_PUBLISH_BYTES_MAX bytes, or another negative result: then nothing was queued. -ENOMEM too: nothing was queued. */
int64_t urs_publish(struct urs_reactor *reactor, uint64_t topic, uint32_t index, uint8_t opcode, const uint8_t *data,
                    size_t bytes, uint64_t skip);

/* Queues a message for the sessions with those ids, once for each time that an id is there. Each session's rules say
 * what happens if its backlog is full; URS_ON_FULL_ERROR drops the message like URS_ON_FULL_DROP. Ids of sessions that
 * are gone or closing are skipped. Returns as urs_publish. */
int64_t urs_send_many(struct urs_reactor *reactor, const uint64_t *ids, size_t count, uint32_t index, uint8_t opcode,
                      const uint8_t *data, size_t bytes);

/* Like urs_send_many, for every open session. */
int64_t urs_send_all(struct urs_reactor *reactor, uint32_t index, uint8_t opcode, const uint8_t *data, size_t bytes);

/* The same for a prepared message: its frame is sent as it is, without a copy. */
int64_t urs_publish_prepared(struct urs_reactor *reactor, uint64_t topic, uint32_t index, struct urs_block *prepared,
                             uint64_t skip);
int64_t urs_send_many_prepared(struct urs_reactor *reactor, const uint64_t *ids, size_t count, uint32_t index,
                               struct urs_block *prepared);
int64_t urs_send_all_prepared(struct urs_reactor *reactor, uint32_t index, struct urs_block *prepared);

/* cdef: end */

#endif
