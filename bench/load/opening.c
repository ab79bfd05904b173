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

/* A socket that nothing is read from, and the one at its server's end, together take megabytes before the server
 * notices: its kernel sizes the send buffer by the segments, and the receive buffer ends up full. With small segments
 * and a small window it is tens of KiB. */
static void keep_socket_small(int fd)
{
    const int segment_bytes = 536, receive_bytes = 4096;
    if (setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment_bytes, sizeof segment_bytes) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes) != 0)
        fail("cannot make a socket take little: %s", strerror(errno));
}

static void open_connection(struct client *client, struct connection *connection)
{
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        fail("socket %u of %u: %s%s", connection_index(client, connection), client->connection_count,
             strerror(errno), errno == EMFILE ? " (raise the limit: ulimit -n)" : "");
    const int yes = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connection_is_stalled(client, connection))
        keep_socket_small(connection->fd);

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
    while (client->opening < at_once && client->next < client->connection_count) {
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
    const enum role role = connection_role(client, connection);
    if (client->options.protocol == PROTOCOL_TCP && role == ROLE_ECHO) {
        begin_proof(client, connection);
        return;
    }
    connection->awaited = AWAIT_UPGRADE;
    client_send(client, connection, client->requests[role].bytes, client->requests[role].count);
    receive(client, connection, HEAD_BYTES_MAX - 1, 0);
}

static void begin_traffic(struct client *client, struct connection *connection)
{
    free(connection->head);
    connection->head = NULL;
    connection->awaited = AWAIT_ANSWERS;
    client->opening--;
    client->open++;
}

static void on_upgraded(struct client *client, struct connection *connection)
{
    if (client->options.mode == MODE_UPGRADE)
        begin_end(client, connection);
    else if (connection_role(client, connection) == ROLE_ECHO)
        begin_proof(client, connection);
    else
        begin_traffic(client, connection); /* the first published message is the proof */
}

/* Over bare TCP the server repeats the letter that named the role. */
static void on_letter(struct client *client, struct connection *connection)
{
    if (connection->head[0] != client->requests[connection_role(client, connection)].bytes[0])
        fail("the server did not repeat the letter of connection %u", connection_index(client, connection));
    on_upgraded(client, connection);
}

static void on_upgrade_bytes(struct client *client, struct connection *connection, int result)
{
    if (result <= 0)
        fail("the server ended connection %u instead of answering the upgrade request: %s",
             connection_index(client, connection), result < 0 ? strerror(-result) : "end of stream");
    if (client->options.protocol == PROTOCOL_TCP) {
        on_letter(client, connection);
        return;
    }
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
    on_upgraded(client, connection);
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
    connection->sent = 1;
    connection->answered = 1;
    begin_traffic(client, connection);
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
