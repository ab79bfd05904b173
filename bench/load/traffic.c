/* The measured part. Per reply this costs a completion, a few additions and a prepared send: less than any server
 * needs. */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

bool client_sent(struct client *client, struct connection *connection, int result)
{
    if (result < 0)
        fail("connection %u, while sending: %s", connection_index(client, connection), strerror(-result));
    if ((size_t)result < connection->send_bytes) {
        client->counts.sends_short++;
        client_send(client, connection, connection->send_next + result, connection->send_bytes - (size_t)result);
        return false;
    }
    connection->sending = false;
    return true;
}

static void send_burst(struct client *client, struct connection *connection)
{
    uint32_t messages = connection->owed;
    if (messages > client->script.burst_messages)
        messages = client->script.burst_messages;
    if (connection->bursts != NULL) {
        unsigned last = (connection->burst_first + connection->burst_count++) % client->options.in_flight;
        connection->bursts[last] = (struct burst){client->now, messages};
    }
    const uint8_t *frames = script_burst(&client->script, script_position(client, connection, connection->sent));
    connection->owed -= messages;
    connection->sent += messages;
    client->outstanding += messages;
    client_send(client, connection, frames, messages * client->script.frame_bytes);
}

static void owe(struct client *client, struct connection *connection, uint32_t messages)
{
    connection->owed += messages;
    if (!connection->sending)
        send_burst(client, connection);
}

void traffic_start(struct client *client)
{
    client->rate_start = client->now;
    if (client->options.messages_per_second > 0)
        return;
    for (unsigned i = 0; i < client->options.connections; i++)
        owe(client, &client->connections[i], client->options.in_flight);
}

/* Returns when message `k` of all connections is due. */
static uint64_t due_at(const struct client *client, uint64_t k)
{
    return client->rate_start + (uint64_t)((double)k * NANOSECONDS_PER_SECOND / client->options.messages_per_second);
}

/* Returns when message `sequence` of a connection (including the message of its proof) was due. */
static uint64_t due_on_connection(const struct client *client, const struct connection *connection, uint64_t sequence)
{
    return due_at(client, (sequence - 1) * client->options.connections + connection_index(client, connection));
}

uint64_t traffic_release(struct client *client)
{
    if (client->stopping)
        return UINT64_MAX;
    uint64_t due;
    while ((due = due_at(client, client->rate_released)) <= client->now) {
        owe(client, &client->connections[client->rate_released % client->options.connections], 1);
        client->rate_released++;
    }
    return due - client->now;
}

void traffic_arm(struct client *client, struct connection *connection)
{
    struct io_uring_sqe *sqe = ring_sqe(&client->ring);
    pool_receive(connection_pool(client, connection), sqe, connection->fd);
    client_tag(client, sqe, connection, REQUEST_RECEIVE);
}

static void record_due(struct client *client, const struct connection *connection, uint64_t sequence)
{
    uint64_t due = due_on_connection(client, connection, sequence);
    if (due >= client->window_start && due < client->window_end) {
        histogram_record(&client->counts.latency, client->now - due, 1);
        client->counts.messages++;
    }
}

static void record_bursts(struct client *client, struct connection *connection, uint32_t messages)
{
    if (client->recording)
        client->counts.messages += messages;
    while (messages > 0) {
        struct burst *burst = &connection->bursts[connection->burst_first];
        uint32_t of_burst = burst->messages < messages ? burst->messages : messages;
        if (client->recording)
            histogram_record(&client->counts.latency, client->now - burst->sent_at, of_burst);
        messages -= of_burst;
        burst->messages -= of_burst;
        if (burst->messages == 0) {
            connection->burst_first = (connection->burst_first + 1) % client->options.in_flight;
            connection->burst_count--;
        }
    }
}

static void on_answer_bytes(struct client *client, struct connection *connection, size_t count)
{
    connection->answer_bytes += count;
    if (connection->answer_bytes < client->script.answer_bytes)
        return;
    uint64_t messages = connection->answer_bytes / client->script.answer_bytes;
    connection->answer_bytes %= client->script.answer_bytes;
    if (messages > connection->sent - connection->answered)
        fail("connection %u received more answers than it sent messages", connection_index(client, connection));
    client->outstanding -= messages;

    if (client->options.messages_per_second > 0) {
        for (uint64_t i = 0; i < messages; i++)
            record_due(client, connection, connection->answered + i);
        connection->answered += messages;
        return;
    }
    record_bursts(client, connection, (uint32_t)messages);
    connection->answered += messages;
    if (!client->stopping)
        owe(client, connection, (uint32_t)messages);
}

static void verify(const struct client *client, const struct connection *connection, const uint8_t *bytes, size_t count)
{
    uint64_t offset = script_position(client, connection, connection->answered) * client->script.answer_bytes +
                      connection->answer_bytes;
    size_t same = script_first_difference(&client->script, offset, bytes, count);
    if (same < count)
        fail("connection %u: byte %llu of answer %llu is 0x%02x and not what was sent",
             connection_index(client, connection),
             (unsigned long long)((offset + same) % client->script.answer_bytes),
             (unsigned long long)((offset + same) / client->script.answer_bytes - connection_index(client, connection)),
             bytes[same]);
}

void traffic_end(struct client *client)
{
    client->ending = true;
    for (unsigned i = 0; i < client->options.connections; i++) {
        struct connection *connection = &client->connections[i];
        if (client->options.protocol == PROTOCOL_WEBSOCKET && !connection->sending)
            client_send(client, connection, script_close_frame, sizeof script_close_frame);
        else
            shutdown(connection->fd, SHUT_WR);
    }
}

static void on_receive_while_ending(struct client *client, struct connection *connection,
                                    const struct io_uring_cqe *cqe)
{
    if (cqe->res > 0)
        pool_return(connection_pool(client, connection), pool_buffer_of(cqe));
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    if (cqe->res > 0 || cqe->res == -ENOBUFS) {
        traffic_arm(client, connection);
    } else {
        close(connection->fd);
        client->open--;
    }
}

static void on_receive(struct client *client, struct connection *connection, const struct io_uring_cqe *cqe)
{
    if (cqe->res <= 0 && cqe->res != -ENOBUFS)
        fail("the server ended connection %u after %llu answers: %s", connection_index(client, connection),
             (unsigned long long)connection->answered, cqe->res < 0 ? strerror(-cqe->res) : "end of stream");
    if (cqe->res > 0) {
        struct pool *pool = connection_pool(client, connection);
        const unsigned buffer = pool_buffer_of(cqe);
        if (connection_is_verified(client, connection))
            verify(client, connection, pool_memory(pool, buffer), (size_t)cqe->res);
        pool_return(pool, buffer);
        on_answer_bytes(client, connection, (size_t)cqe->res);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE)) {
        client->counts.receives_ended++;
        traffic_arm(client, connection);
    }
}

void traffic_complete(struct client *client, struct connection *connection, enum request request,
                      const struct io_uring_cqe *cqe)
{
    if (client->ending) {
        if (request == REQUEST_RECEIVE)
            on_receive_while_ending(client, connection, cqe);
    } else if (request == REQUEST_RECEIVE) {
        on_receive(client, connection, cqe);
    } else if (client_sent(client, connection, cqe->res) && connection->owed > 0) {
        send_burst(client, connection);
    }
}

void traffic_count_unanswered(struct client *client)
{
    for (unsigned i = 0; i < client->options.connections; i++) {
        struct connection *connection = &client->connections[i];
        const uint64_t released = connection->sent + connection->owed;
        for (uint64_t sequence = connection->answered; sequence < released; sequence++) {
            uint64_t before = client->counts.messages;
            record_due(client, connection, sequence);
            client->counts.unanswered += client->counts.messages - before;
            client->counts.messages = before;
        }
    }
}
