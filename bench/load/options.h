/* The command line of the load generator, parsed and checked. */
#ifndef LOAD_OPTIONS_H
#define LOAD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "script.h"

enum mode {
    MODE_ECHO,    /* open all connections, exchange messages for a while, report */
    MODE_UPGRADE, /* connect, upgrade, close, and again, on each connection */
    MODE_IDLE,    /* open all connections, exchange one message on each, hold them until standard input ends */
    MODE_FANOUT,  /* a publisher sends, and the next messages when all members that read have received the last ones */
    MODE_CHAT,    /* the members publish: each sends, and the next messages when all have received all of the last ones */
    MODE_BACKLOG, /* publish a number of messages, hold the stalled members, then let them read and compare every byte */
    MODES
};

enum { WATCHED_MAX = 64 };

struct options {
    enum mode mode;
    enum protocol protocol;
    const char *host; /* an IPv4 address */
    const char *path;
    unsigned port;
    unsigned connections;
    unsigned in_flight; /* messages per connection; of a publisher: messages per round */
    unsigned members;
    unsigned stalled;         /* members that do not read */
    unsigned publishes;       /* in backlog mode */
    double publishes_per_second; /* beside echoes */
    size_t payload_bytes;
    bool text;
    bool verify;
    bool spin;                  /* never sleep, so that the client's own wake-up is not part of a latency */
    double messages_per_second; /* of all connections together; 0: send as soon as the reply arrives */
    double warmup_seconds;
    double seconds;
    int core; /* -1: any */
    pid_t watched[WATCHED_MAX];
    unsigned watched_count;
};

/* The modes as --mode names them. */
extern const char *const options_mode_names[MODES];

/* Whether all messages of the mode are published: there are no echo connections. */
static inline bool options_publish(const struct options *options)
{
    return options->mode == MODE_FANOUT || options->mode == MODE_CHAT || options->mode == MODE_BACKLOG;
}

/* Ends the program with a message if the command line is wrong, and with a description for --help. */
struct options options_parse(int argc, char **argv);

#endif
