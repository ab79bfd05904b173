/* From a socket to a session that has proved that it echoes: connect, upgrade, one message. In upgrade mode also its
 * end. */
#include "client.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

enum { OPENING_MAX = 64, HEAD_BYTES_MAX = 4096 };

static void receive(struct client *client, struct connection *connection, size_t room, int flags)
{
    struct io_uring_sqe *sqe = ring_sqe(&client->ring);
    io_uring_prep_recv(sqe, connection->fd, connection->head + connection->head_bytes, room, flags);
    client_tag(client, sqe, connection, REQUEST_RECEIVE);
}

static size_t head_room(const struct client *client)
{
    return client->script.answer_bytes > HEAD_BYTES_MAX ? client->script.answer_bytes : HEAD_BYTES_MAX;
}

static void open_connection(struct client *client, struct connection *connection)
{
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        fail("socket %u of %u: %s%s", connection_index(client, connection), client->options.connections,
             strerror(errno), errno == EMFILE ? " (raise the limit: ulimit -n)" : "");
    const int yes = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);

    if (connection->head == NULL)
        connection->head = allocate(1, head_room(client));
    connection->head_bytes = 0;
    connection->opened_at = client->now;
    connection->awaited = AWAIT_CONNECT;
    struct io_uring_sqe *sqe = ring_sqe(&client->ring);
    io_uring_prep_connect(sqe, connection->fd, (const struct sockaddr *)&client->address, sizeof client->address);
    client_tag(client, sqe, connection, REQUEST_CONNECT);
}

void opening_continue(struct client *client)
{
    const unsigned at_once = client->options.mode == MODE_UPGRADE ? client->options.connections : OPENING_MAX;
    while (client->opening < at_once && client->next < client->options.connections) {
        client->opening++;
        open_connection(client, &client->connections[client->next++]);
    }
}

static void begin_proof(struct client *client, struct connection *connection)
{
    connection->awaited = AWAIT_PROOF;
    connection->head_bytes = 0;
    const uint8_t *frame = script_burst(&client->script, script_position(client, connection, 0));
    client_send(client, connection, frame, client->script.frame_bytes);
    receive(client, connection, client->script.answer_bytes, MSG_WAITALL);
}

static void begin_end(struct client *client, struct connection *connection)
{
    connection->awaited = AWAIT_END;
    connection->head_bytes = 0;
    if (client->recording) {
        client->counts.messages++;
        histogram_record(&client->counts.latency, client->now - connection->opened_at, 1);
    }
    client_send(client, connection, script_close_frame, sizeof script_close_frame);
    receive(client, connection, HEAD_BYTES_MAX, 0);
}

static void on_connected(struct client *client, struct connection *connection, int result)
{
    if (result < 0)
        fail("cannot connect to %s:%u (connection %u): %s", client->options.host, client->options.port,
             connection_index(client, connection), strerror(-result));
    if (client->options.protocol == PROTOCOL_TCP) {
        begin_proof(client, connection);
        return;
    }
    connection->awaited = AWAIT_UPGRADE;
    client_send(client, connection, client->request, client->request_bytes);
    receive(client, connection, HEAD_BYTES_MAX - 1, 0);
}

static void on_upgrade_bytes(struct client *client, struct connection *connection, int result)
{
    if (result <= 0)
        fail("the server ended connection %u instead of answering the upgrade request: %s",
             connection_index(client, connection), result < 0 ? strerror(-result) : "end of stream");
    connection->head_bytes += (size_t)result;
    connection->head[connection->head_bytes] = '\0';
    const char *head = (const char *)connection->head;
    const char *end = strstr(head, "\r\n\r\n");
    if (end == NULL) {
        if (connection->head_bytes == HEAD_BYTES_MAX - 1)
            fail("the server's response has more than %d bytes", HEAD_BYTES_MAX - 1);
        receive(client, connection, HEAD_BYTES_MAX - 1 - connection->head_bytes, 0);
        return;
    }
    if (strncmp(head, "HTTP/1.1 101", 12) != 0 || strstr(head, script_upgrade_accept()) == NULL)
        fail("the server did not accept the upgrade: %.*s", (int)strcspn(head, "\r\n"), head);
    if ((size_t)(end + 4 - head) != connection->head_bytes)
        fail("the server spoke first, after its response; an echo server does not");
    if (client->options.mode == MODE_UPGRADE)
        begin_end(client, connection);
    else
        begin_proof(client, connection);
}

static void on_proof(struct client *client, struct connection *connection, int result)
{
    if (result < 0)
        fail("the server ended connection %u: %s", connection_index(client, connection), strerror(-result));
    const uint8_t *head = connection->head;
    size_t count = (size_t)result;
    uint64_t offset = script_position(client, connection, 0) * client->script.answer_bytes;
    size_t same = script_first_difference(&client->script, offset, head, count);
    if (same < count || count < client->script.answer_bytes) {
        if (count >= 4 && head[0] == 0x88)
            fail("the server closes instead of echoing %zu bytes: code %u, \"%.*s\"", client->options.payload_bytes,
                 head[2] << 8 | head[3], (int)(count - 4 < 80 ? count - 4 : 80), head + 4);
        fail("the first answer is not the message: %zu of %zu bytes came, byte %zu is the first to differ", count,
             client->script.answer_bytes, same);
    }
    free(connection->head);
    connection->head = NULL;
    connection->sent = 1;
    connection->answered = 1;
    connection->awaited = AWAIT_ANSWERS;
    client->opening--;
    client->open++;
    if (client->options.mode == MODE_ECHO)
        traffic_arm(client, connection);
}

static void on_end_bytes(struct client *client, struct connection *connection, int result)
{
    if (result > 0) {
        receive(client, connection, HEAD_BYTES_MAX, 0);
        return;
    }
    if (result < 0 && result != -ECONNRESET)
        fail("connection %u: %s", connection_index(client, connection), strerror(-result));
    close(connection->fd);
    connection->fd = -1;
    if (client->stopping) {
        client->opening--;
        connection->awaited = AWAIT_TURN;
    } else {
        open_connection(client, connection);
    }
}

void opening_complete(struct client *client, struct connection *connection, enum request request, int result)
{
    if (request == REQUEST_SEND) {
        client_sent(client, connection, result);
        return;
    }
    switch (connection->awaited) {
    case AWAIT_CONNECT: on_connected(client, connection, result); break;
    case AWAIT_UPGRADE: on_upgrade_bytes(client, connection, result); break;
    case AWAIT_PROOF: on_proof(client, connection, result); break;
    case AWAIT_END: on_end_bytes(client, connection, result); break;
    case AWAIT_TURN:
    case AWAIT_ANSWERS: break;
    }
}
