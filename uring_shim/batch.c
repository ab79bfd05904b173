/* Batches: batch.h says what each function does. */
#include "batch.h"

#include <string.h>

#include "apply.h"
#include "core.h"

static bool is_message(const struct urs_event *event)
{
    return event->item.kind == URS_ITEM_MESSAGE || event->item.kind == URS_ITEM_FRAME;
}

/* Returns the number of the batch handler that an event is a message for; 0 for any other event. */
static uint32_t batch_of(const struct urs_reactor *reactor, const struct urs_event *event)
{
    return is_message(event) ? urs_core_rules(reactor, urs_core_session(reactor, event->slot))->batch : 0;
}

/* Returns whether Python is given a message. A message that came whole before its session was lost is. */
static bool is_delivered(const struct urs_reactor *reactor, const struct urs_event *event)
{
    const struct urs_session *session = urs_core_session(reactor, event->slot);
    return URS_LIKELY(session->state == URS_SESSION_OPEN) || urs_core_rules(reactor, session)->deliver_while_closing;
}

int urs_batch_find(struct urs_reactor *reactor, uint32_t begin, uint32_t until, uint32_t count_max, uint32_t *rows,
                   struct urs_run *run)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    until = (uint32_t)urs_min(until, reactor->event_count);
    if (begin >= until || begin < reactor->applied || count_max == 0)
        return URS_ERROR_STATE;
    uint32_t batch = batch_of(reactor, &reactor->events[begin]);
    uint32_t index = begin;
    uint32_t count = 0;
    for (; index < until && count < count_max; index++) {
        const struct urs_event *event = &reactor->events[index];
        if (batch != 0 && event->item.kind == URS_ITEM_PING)
            continue;
        if (batch_of(reactor, event) != batch)
            break;
        if (batch != 0 && is_delivered(reactor, event))
            rows[count++] = index;
    }
    URS_ASSERT(index > begin && count <= index - begin);
    *run = (struct urs_run){.end = index, .batch = batch, .count = count};
    if (count > 0) {
        run->first = rows[0];
        run->contiguous = rows[count - 1] - rows[0] == count - 1;
        memset(reactor->options.echo_flags + begin, 0, index - begin);
    }
    return 0;
}

/* Calls for a message with index `at`: returns its event, or NULL if it is no message that Python is handling. The
 * payload of such a message is still in place. */
static const struct urs_event *message_at(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first,
                                          uint32_t at)
{
    uint32_t index = rows == NULL ? first + at : rows[at];
    if (index < reactor->applied || index >= reactor->event_count || !is_message(&reactor->events[index]))
        return NULL;
    return &reactor->events[index];
}

int urs_batch_ids(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                  uint64_t *ids)
{
    int refused = urs_core_check(reactor);
    for (uint32_t at = 0; at < count && refused == 0; at++) {
        const struct urs_event *event = message_at(reactor, rows, first, at);
        if (event == NULL)
            return URS_ERROR_STATE;
        ids[at] = urs_session_id(urs_core_session(reactor, event->slot));
    }
    return refused;
}

int64_t urs_batch_gather(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                         uint8_t *data, size_t room, int32_t *offsets)
{
    int refused = urs_core_check(reactor);
    int64_t bytes = 0;
    for (uint32_t at = 0; at < count && refused == 0; at++) {
        const struct urs_event *event = message_at(reactor, rows, first, at);
        if (event == NULL)
            return URS_ERROR_STATE;
        offsets[at] = (int32_t)bytes;
        bytes += (int64_t)event->item.bytes;
        if (bytes > INT32_MAX)
            return URS_ERROR_TOO_BIG;
    }
    if (refused != 0)
        return refused;
    offsets[count] = (int32_t)bytes;
    if ((size_t)bytes > room)
        return bytes;
    for (uint32_t at = 0; at < count; at++) {
        const struct urs_item *item = &message_at(reactor, rows, first, at)->item;
        if (item->bytes > 0)
            memcpy(data + offsets[at], item->payload, item->bytes);
    }
    return bytes;
}

int urs_batch_records(const struct urs_reactor *reactor, const uint32_t *rows, uint32_t first, uint32_t count,
                      size_t width, uint8_t *data, bool *fits)
{
    int refused = urs_core_check(reactor);
    for (uint32_t at = 0; at < count && refused == 0; at++, data += width) {
        const struct urs_event *event = message_at(reactor, rows, first, at);
        if (event == NULL)
            return URS_ERROR_STATE;
        fits[at] = event->item.bytes == width && event->item.opcode == URS_OPCODE_BINARY;
        if (URS_LIKELY(fits[at]))
            memcpy(data, event->item.payload, width);
        else
            memset(data, 0, width);
    }
    return refused;
}

/* Returns whether every payload lies within the data. */
static bool lie_within(const struct urs_payloads *payloads, uint32_t count)
{
    const int64_t *offsets = payloads->offsets;
    if (count == 0)
        return true;
    if (offsets == NULL)
        return payloads->width <= payloads->bytes
            && (payloads->stride == 0 || (payloads->bytes - payloads->width) / payloads->stride >= count - 1);
    for (uint32_t at = 0; at < count; at++)
        if (offsets[at] < 0 || offsets[at] > offsets[at + 1])
            return false;
    return (uint64_t)offsets[count] <= payloads->bytes;
}

/* Counts the result of one message. Returns 0, or the result if it concerns more than that message. */
static int count_result(struct urs_batch_results *results, int result)
{
    switch (result) {
    case URS_SENT:
        results->sent++;
        return 0;
    case URS_QUEUED:
        results->queued++;
        return 0;
    case URS_DROPPED:
        results->dropped++;
        return 0;
    case URS_ERROR_STALE:
    case URS_ERROR_CLOSING:
        results->skipped++;
        return 0;
    case URS_ERROR_FULL:
        results->full++;
        return 0;
    case URS_ERROR_INTERLEAVED:
        results->interleaved++;
        return 0;
    default:
        return result;
    }
}

int urs_batch_send(struct urs_reactor *reactor, const uint64_t *ids, uint32_t count, uint32_t index, uint8_t opcode,
                   const struct urs_payloads *payloads, struct urs_batch_results *results)
{
    int error = urs_core_check(reactor);
    *results = (struct urs_batch_results){0};
    if (error == 0 && !lie_within(payloads, count))
        error = URS_ERROR_STATE;
    for (uint32_t at = 0; at < count && error == 0; at++) {
        const uint8_t *data = payloads->data + at * payloads->stride;
        size_t bytes = payloads->width;
        if (payloads->offsets != NULL) {
            data = payloads->data + payloads->offsets[at];
            bytes = (size_t)(payloads->offsets[at + 1] - payloads->offsets[at]);
        }
        error = count_result(results, urs_command_send(reactor, ids[at], index, opcode, data, bytes));
    }
    return error;
}

int urs_batch_echo(struct urs_reactor *reactor, uint64_t id, uint32_t first, uint32_t until)
{
    int refused = urs_core_check(reactor);
    if (refused != 0)
        return refused;
    if (first < reactor->applied || until > reactor->event_count)
        return URS_ERROR_STATE;
    for (uint32_t index = first; index < until; index++) {
        const struct urs_event *event = &reactor->events[index];
        if (reactor->options.echo_flags[index] == 0 || !is_message(event))
            continue;
        if (id == 0 || id == urs_session_id(urs_core_session(reactor, event->slot)))
            urs_apply_echo(reactor, index);
    }
    return 0;
}
