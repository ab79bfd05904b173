/* The receiving side of fan-out. A member costs its server nothing but the send: no request waits on its socket, so
 * that the server wakes no one, and the bytes are counted and dropped by the kernel, from time to time. */
#include "client.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define STALL_NANOSECONDS (UINT64_C(10) * NANOSECONDS_PER_SECOND)
#define END_NANOSECONDS (UINT64_C(2) * NANOSECONDS_PER_SECOND)

enum { SCRATCH_BYTES = 256 << 10, PAUSE_NANOSECONDS = 20 * NANOSECONDS_PER_MICROSECOND, SLEEP_MILLISECONDS = 100 };

static uint8_t scratch[SCRATCH_BYTES];

static unsigned member_number(const struct client *client, const struct connection *member)
{
    return (unsigned)(member - client->members);
}

/* Fan-out: one publisher, so the stream of every member is known. */
static void verify_stream(const struct client *client, const struct connection *member, size_t count)
{
    size_t same = script_first_difference(&client->script, member->taken_bytes, scratch, count);
    if (same < count)
        fail("member %u: byte %llu of published message %llu is 0x%02x and not what was sent",
             member_number(client, member),
             (unsigned long long)((member->taken_bytes + same) % client->script.answer_bytes),
             (unsigned long long)((member->taken_bytes + same) / client->script.answer_bytes), scratch[same]);
}

/* Returns a number that belongs to one variant of the script (the finalizer of splitmix64). */
static uint64_t mark(uint64_t variant)
{
    uint64_t bits = (variant + 1) * UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ bits >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94d049bb133111eb);
    return bits ^ bits >> 31;
}

void members_said(struct client *client, uint64_t position, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        client->said += mark((position + i) % client->script.variants);
}

static void hear(const struct client *client, struct connection *member, const uint8_t *message)
{
    const struct script *script = &client->script;
    for (unsigned variant = 0; variant < script->variants; variant++) {
        if (memcmp(message, script->answers + variant * script->answer_bytes, script->answer_bytes) == 0) {
            member->heard += mark(variant);
            return;
        }
    }
    fail("chatter %u received, near byte %llu of its stream, a message that no one sent", member_number(client, member),
         (unsigned long long)member->taken_bytes);
}

/* Chat: the order of messages from different chatters is the server's; each message must be whole, and all must come. */
static void verify_chat(const struct client *client, struct connection *member, size_t count)
{
    const size_t message_bytes = client->script.answer_bytes;
    if (member->partial == NULL)
        member->partial = allocate(1, message_bytes);
    const uint8_t *bytes = scratch;
    uint64_t position = member->taken_bytes;
    while (count > 0) {
        size_t have = position % message_bytes;
        size_t piece = message_bytes - have < count ? message_bytes - have : count;
        memcpy(member->partial + have, bytes, piece);
        if (have + piece == message_bytes)
            hear(client, member, member->partial);
        bytes += piece;
        position += piece;
        count -= piece;
    }
}

static uint64_t published_bytes(const struct client *client)
{
    return client->published * client->script.answer_bytes;
}

/* Takes the bytes that have arrived; returns whether the member has everything that was published. */
static bool take(struct client *client, struct connection *member)
{
    const uint64_t wanted = published_bytes(client);
    const bool verified = connection_is_verified(client, member);
    while (member->taken_bytes < wanted) {
        const uint64_t missing = wanted - member->taken_bytes;
        ssize_t count = recv(member->fd, scratch, missing < sizeof scratch ? missing : sizeof scratch,
                             MSG_DONTWAIT | (verified ? 0 : MSG_TRUNC)); /* tcp(7): discards instead of copying */
        if (count < 0 && errno == EAGAIN)
            return false;
        if (count <= 0)
            fail("the server ended member %u after %llu published messages: %s", member_number(client, member),
                 (unsigned long long)(member->taken_bytes / client->script.answer_bytes),
                 count < 0 ? strerror(errno) : "end of stream");
        if (verified && client->options.mode == MODE_CHAT)
            verify_chat(client, member, (size_t)count);
        else if (verified)
            verify_stream(client, member, (size_t)count);
        member->taken_bytes += (uint64_t)count;
        client->last_progress = client->now;
    }
    if (verified && client->options.mode == MODE_CHAT && member->heard != client->said)
        fail("chatter %u received as many messages as were sent, but not the same", member_number(client, member));
    return true;
}

/* Waits on this one member: then the server wakes the client at most once per round. */
static void wait_for(struct client *client, const struct connection *member)
{
    if (client->options.spin) {
        const uint64_t until = now_nanoseconds() + PAUSE_NANOSECONDS;
        while ((client->now = now_nanoseconds()) < until)
            continue;
    } else {
        struct pollfd arrived = {.fd = member->fd, .events = POLLIN};
        poll(&arrived, 1, SLEEP_MILLISECONDS);
        client->now = now_nanoseconds();
    }
    if (client->now - client->last_progress > STALL_NANOSECONDS)
        fail("nothing came for %d seconds: member %u has %llu of %llu published messages%s",
             (int)(STALL_NANOSECONDS / NANOSECONDS_PER_SECOND), member_number(client, member),
             (unsigned long long)(member->taken_bytes / client->script.answer_bytes),
             (unsigned long long)client->published,
             member->taken_bytes == 0 ? " (a connection must be a member when its upgrade is answered)" : "");
}

static void take_from(struct client *client, unsigned first, unsigned end)
{
    client->last_progress = client->now = now_nanoseconds();
    for (unsigned i = first; i < end; i++)
        while (!take(client, &client->members[i]))
            wait_for(client, &client->members[i]);
    client->last_progress = client->now = now_nanoseconds();
}

void members_take(struct client *client)
{
    take_from(client, 0, client->options.members - client->options.stalled);
}

/* Ends the restriction of keep_socket_small (opening.c): through a window of 4 KiB the bytes would take a minute. */
static void widen(const struct connection *member)
{
    const int receive_bytes = 1 << 20, window_bytes = UINT16_MAX; /* there is no window scaling on this connection */
    if (setsockopt(member->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes) != 0 ||
        setsockopt(member->fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &window_bytes, sizeof window_bytes) != 0)
        fail("cannot widen the window of a stalled member: %s", strerror(errno));
}

void members_take_stalled(struct client *client)
{
    const unsigned reading = client->options.members - client->options.stalled;
    client->verify_all = true;
    for (unsigned i = reading; i < client->options.members; i++)
        widen(&client->members[i]);
    take_from(client, reading, client->options.members);
    client->options.stalled = 0; /* they have read everything, and end like the others */
}

void members_expect_nothing(struct client *client)
{
    for (unsigned i = 0; i < client->options.members - client->options.stalled; i++)
        if (recv(client->members[i].fd, scratch, sizeof scratch, MSG_DONTWAIT | MSG_TRUNC) > 0)
            fail("member %u received more than was published", i);
}

static void tell_of_end(const struct client *client, const struct connection *connection)
{
    if (client->options.protocol == PROTOCOL_WEBSOCKET)
        send(connection->fd, script_close_frame, sizeof script_close_frame, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        shutdown(connection->fd, SHUT_WR);
}

static void await_end(const struct connection *connection, uint64_t deadline)
{
    struct pollfd ended = {.fd = connection->fd, .events = POLLIN};
    uint64_t now;
    while ((now = now_nanoseconds()) < deadline) {
        poll(&ended, 1, (int)((deadline - now) / NANOSECONDS_PER_MILLISECOND) + 1);
        ssize_t count = recv(connection->fd, scratch, sizeof scratch, MSG_DONTWAIT | MSG_TRUNC);
        if (count == 0 || (count < 0 && errno != EAGAIN))
            break;
    }
    close(connection->fd);
}

void members_end(struct client *client)
{
    const unsigned reading = client->options.members - client->options.stalled;
    for (unsigned i = reading; i < client->options.members; i++)
        close(client->members[i].fd); /* unread bytes: a reset */
    for (unsigned i = 0; i < reading; i++)
        tell_of_end(client, &client->members[i]);
    if (client->publisher != NULL)
        tell_of_end(client, client->publisher);
    const uint64_t deadline = now_nanoseconds() + END_NANOSECONDS;
    for (unsigned i = 0; i < reading; i++)
        await_end(&client->members[i], deadline);
    if (client->publisher != NULL)
        await_end(client->publisher, deadline);
    client->open -= client->options.members + (client->publisher != NULL);
}
