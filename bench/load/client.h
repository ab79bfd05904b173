/* The state of the client, and the task of each file: opening.c opens a connection (and closes it in upgrade mode),
 * traffic.c exchanges messages on it, members.c takes what a server publishes, fanout.c publishes and waits for the
 * members, report.c reads the clocks and prints, load.c decides when. */
#ifndef LOAD_CLIENT_H
#define LOAD_CLIENT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"
#include "options.h"
#include "ring.h"
#include "script.h"

/* The purpose of a connection. The server learns it from the path of the upgrade request, and over bare TCP from the
 * first byte. */
enum role {
    ROLE_ECHO,      /* its messages come back */
    ROLE_MEMBER,    /* receives every published message, sends none */
    ROLE_CHATTER,   /* each of its messages is published to all chatters, itself included */
    ROLE_PUBLISHER, /* each of its messages is published to all members; all that it receives is ignored */
    ROLES
};

/* The event that a connection waits for. */
enum awaited {
    AWAIT_TURN,    /* not opened yet */
    AWAIT_CONNECT,
    AWAIT_UPGRADE, /* the head of the server's response */
    AWAIT_PROOF,   /* the answer to its first message, which is compared byte by byte */
    AWAIT_ANSWERS, /* open: handled by traffic.c */
    AWAIT_END      /* upgrade mode: a close frame is sent, and the server must end the connection */
};

/* The request that a completion belongs to. There is at most one of each kind per connection. */
enum request { REQUEST_CONNECT, REQUEST_SEND, REQUEST_RECEIVE };

/* Messages that were sent together, with the time for their latency. */
struct burst {
    uint64_t sent_at;
    uint32_t messages;
};

struct connection {
    int fd;
    enum awaited awaited;
    bool sending;              /* a send is in flight; there is at most one */
    uint32_t owed;             /* messages to send as soon as no send is in flight */
    const uint8_t *send_next;  /* the bytes that the send in flight has not sent yet */
    size_t send_bytes;
    uint64_t sent;             /* messages, including the one of the proof */
    uint64_t answered;         /* messages, including the one of the proof */
    size_t answer_bytes;       /* bytes of the next reply that have arrived */
    unsigned burst_first;      /* the oldest of `bursts` that is not answered */
    unsigned burst_count;
    struct burst *bursts;      /* options.in_flight of them, a ring; closed loop only */
    uint8_t *head;             /* while opening: the bytes received so far */
    size_t head_bytes;
    uint64_t opened_at;
    /* Members and chatters only. */
    uint64_t taken_bytes;      /* of the stream of published messages */
    uint64_t heard;            /* the sum of marks (members.c) of the messages that a verified chatter received */
    uint8_t *partial;          /* chatters: a message of which a part has arrived */
};

/* The counters that run while `recording`. */
struct counts {
    uint64_t messages; /* or upgrades */
    uint64_t turns;
    uint64_t sends_short;
    uint64_t receives_ended; /* multishot receives that had to be armed again */
    uint64_t unanswered;     /* fixed rate: messages that were due in the window and never answered */
    struct histogram latency;
};

struct client {
    struct options options;
    struct script script;
    struct ring ring;
    struct pool read;    /* for connections whose answers are compared */
    struct pool discard; /* for connections whose answers are only counted */
    struct sockaddr_in address;
    /* options.connections echo connections, then the members or chatters, then the publisher if there is one. */
    struct connection *connections;
    unsigned connection_count;
    struct connection *members;
    struct connection *publisher; /* NULL: none */
    struct {
        char bytes[1024]; /* the upgrade request, over TCP one letter */
        size_t count;
    } requests[ROLES];
    unsigned opening;   /* connections between AWAIT_TURN and AWAIT_ANSWERS */
    unsigned next;      /* the first connection still in AWAIT_TURN */
    unsigned open;      /* connections in AWAIT_ANSWERS */
    bool stopping;      /* send nothing new */
    bool ending;        /* every connection is told to end */
    bool recording;
    uint64_t now;             /* read once per turn */
    uint64_t last_progress;   /* when the last completion came */
    uint64_t outstanding;     /* messages sent and not answered */
    /* Fixed rate: message k of all is due at `rate_start` + k / rate, on connection k % connections. */
    uint64_t rate_start;
    uint64_t rate_released; /* messages that were due until now */
    uint64_t window_start, window_end;
    /* Messages published so far (in chat: by all together), and the sum of their marks. A publisher with a rate sends
     * message k when it is due at `rate_start` + k / rate. */
    uint64_t published;
    uint64_t said;
    bool verify_all; /* now, whatever the options say */
    struct counts counts;
};

/* opening.c */

/* Begins to open as many connections as may be in progress at the same time. */
void opening_continue(struct client *client);
/* Handles a completion for a connection that is not in AWAIT_ANSWERS. */
void opening_complete(struct client *client, struct connection *connection, enum request request, int result);

/* members.c */

/* Waits until every member that reads has taken `published` messages, and compares the bytes of the verified ones. Ends
 * the program if a message is lost, wrong, or does not come. */
void members_take(struct client *client);
/* The same for the stalled members, with every byte compared. */
void members_take_stalled(struct client *client);
/* Ends the program if a member has received more than was published. */
void members_expect_nothing(struct client *client);
/* Ends the sessions of members and publisher; the server has noticed all of it when this returns. */
void members_end(struct client *client);
/* Chat: notes that `count` messages were sent, the first of which is number `position` of the script. */
void members_said(struct client *client, uint64_t position, unsigned count);

/* fanout.c */

/* Publishes one message, which every member has to receive with the right bytes. */
void fanout_prove(struct client *client);
/* Publishes and waits for all members, round by round, until `deadline`; always ends with a whole round. */
void fanout_run_until(struct client *client, uint64_t deadline);
/* Publishes `count` messages, one round of options.in_flight after the other. */
void fanout_publish(struct client *client, uint64_t count);
/* A publisher with a rate: publishes what is due, and returns the nanoseconds until the next message is due. */
uint64_t fanout_release(struct client *client);

/* report.c */

/* Values read at both ends of the window; the report shows their differences. */
struct reading {
    uint64_t at;
    uint64_t own_cpu;
    uint64_t own_waited; /* time in which the process was ready to run while the CPU did something else */
    uint64_t watched_cpu;
    uint64_t watched_waited;
};
struct reading report_read_clocks(const struct client *client);
/* Prints the JSON object. */
void report_print(const struct client *client, struct reading from, struct reading to);

/* traffic.c */

/* Sends every connection its first messages, or starts the clock of the fixed rate. */
void traffic_start(struct client *client);
/* Fixed rate: sends the messages that are due, and returns the nanoseconds until the next message is due. */
uint64_t traffic_release(struct client *client);
/* Arms the receive of a connection that has just been opened. */
void traffic_arm(struct client *client, struct connection *connection);
/* Handles a completion for a connection in AWAIT_ANSWERS. */
void traffic_complete(struct client *client, struct connection *connection, enum request request,
                      const struct io_uring_cqe *cqe);
/* Ends every connection as its protocol requires, so that no server logs errors while the next one is measured. */
void traffic_end(struct client *client);
/* Fixed rate: counts messages that were due in the window and are not answered, with their present age. */
void traffic_count_unanswered(struct client *client);

static inline unsigned connection_index(const struct client *client, const struct connection *connection)
{
    return (unsigned)(connection - client->connections);
}

static inline enum role connection_role(const struct client *client, const struct connection *connection)
{
    if (connection == client->publisher)
        return ROLE_PUBLISHER;
    if (connection < client->members)
        return ROLE_ECHO;
    return client->options.mode == MODE_CHAT ? ROLE_CHATTER : ROLE_MEMBER;
}

/* Whether every byte that a connection receives is compared. With --verify this is true for all connections, otherwise
 * only for the first one and the first member, as samples. (The first reply of each connection, and the first published
 * message, are always compared.) */
static inline bool connection_is_verified(const struct client *client, const struct connection *connection)
{
    return client->options.verify || client->verify_all || connection == client->connections ||
           connection == client->members;
}

/* Whether it is one of the members that do not read, the last ones. */
static inline bool connection_is_stalled(const struct client *client, const struct connection *connection)
{
    return connection >= client->members + client->options.members - client->options.stalled &&
           connection < client->members + client->options.members;
}

static inline struct pool *connection_pool(struct client *client, const struct connection *connection)
{
    return connection_is_verified(client, connection) ? &client->read : &client->discard;
}

/* Returns the position in the script of message `sequence` of a connection. Each connection begins at a different
 * variant, so that a reply that belongs to another connection is noticed. */
static inline uint64_t script_position(const struct client *client, const struct connection *connection,
                                       uint64_t sequence)
{
    return sequence + connection_index(client, connection);
}

static inline void client_tag(const struct client *client, struct io_uring_sqe *sqe,
                              const struct connection *connection, enum request request)
{
    io_uring_sqe_set_data64(sqe, (uint64_t)connection_index(client, connection) << 8 | request);
}

static inline enum request tag_request(uint64_t tag)
{
    return (enum request)(tag & 0xff);
}

static inline struct connection *tag_connection(const struct client *client, uint64_t tag)
{
    return &client->connections[tag >> 8];
}

/* Queues a send of bytes that must stay valid until it completes. */
static inline void client_send(struct client *client, struct connection *connection, const void *bytes, size_t count)
{
    connection->sending = true;
    connection->send_next = bytes;
    connection->send_bytes = count;
    struct io_uring_sqe *sqe = ring_sqe(&client->ring);
    io_uring_prep_send(sqe, connection->fd, bytes, count, MSG_WAITALL | MSG_NOSIGNAL);
    client_tag(client, sqe, connection, REQUEST_SEND);
}

/* Handles the completion of a send: returns true if all bytes are sent, otherwise queues the rest. */
bool client_sent(struct client *client, struct connection *connection, int result);

#endif
