/* The sending side of fan-out: the messages, and when they are published. Rounds are closed: the next messages are sent when every
 * member that reads has the last ones. */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base.h"

/* A server that handles each connection in a task answers the upgrade a moment before the connection is a member. */
#define SETTLE_NANOSECONDS (100 * NANOSECONDS_PER_MILLISECOND)

static void send_all(const struct connection *connection, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t sent = send(connection->fd, bytes, count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            fail("while publishing: %s", strerror(errno));
        bytes += sent;
        count -= (size_t)sent;
    }
}

static void send_frames(const struct client *client, const struct connection *connection, uint64_t position,
                        unsigned messages)
{
    if (messages > client->script.burst_messages)
        fail("%u messages of %zu bytes are too many for one round", messages, client->options.payload_bytes);
    send_all(connection, script_burst(&client->script, position), messages * client->script.frame_bytes);
}

static void publish(struct client *client, unsigned messages)
{
    static uint8_t report[4096];
    recv(client->publisher->fd, report, sizeof report, MSG_DONTWAIT | MSG_TRUNC); /* nchan reports each message */
    send_frames(client, client->publisher, client->published, messages);
    client->published += messages;
}

/* Each chatter begins at another variant, so that messages that are exchanged or repeated are noticed. */
static void chat(struct client *client, unsigned messages)
{
    const uint64_t first = client->published / client->options.members;
    for (unsigned i = 0; i < client->options.members; i++) {
        send_frames(client, &client->members[i], first + i, messages);
        members_said(client, first + i, messages);
    }
    client->published += (uint64_t)messages * client->options.members;
}

/* Counts every message with the time until the last member had it. */
static void record(struct client *client, uint64_t began, uint64_t published)
{
    const uint64_t received = published * (client->options.members - client->options.stalled);
    client->counts.messages += received;
    histogram_record(&client->counts.latency, client->now - began, received);
}

static void round_of(struct client *client, unsigned messages)
{
    const uint64_t began = client->now, before = client->published;
    if (client->options.mode == MODE_CHAT)
        chat(client, messages);
    else
        publish(client, messages);
    members_take(client);
    if (client->recording)
        record(client, began, client->published - before);
    client->counts.turns++;
}

void fanout_prove(struct client *client)
{
    const struct timespec settle = {.tv_nsec = SETTLE_NANOSECONDS};
    nanosleep(&settle, NULL);
    client->now = now_nanoseconds();
    client->verify_all = true;
    round_of(client, 1);
    client->verify_all = false;
}

void fanout_run_until(struct client *client, uint64_t deadline)
{
    while (client->now < deadline)
        round_of(client, client->options.in_flight);
}

void fanout_publish(struct client *client, uint64_t count)
{
    while (count > 0) {
        const unsigned messages = count < client->options.in_flight ? (unsigned)count : client->options.in_flight;
        round_of(client, messages);
        count -= messages;
    }
}

uint64_t fanout_release(struct client *client)
{
    if (client->stopping)
        return UINT64_MAX;
    const double interval = NANOSECONDS_PER_SECOND / client->options.publishes_per_second;
    uint64_t due;
    /* The first message was the proof; the next one is due one interval after the start. */
    while ((due = client->rate_start + (uint64_t)((double)client->published * interval)) <= client->now)
        publish(client, 1);
    return due - client->now;
}
