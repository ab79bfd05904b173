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
    MODE_IDLE     /* open all connections, exchange one message on each, hold them until standard input ends */
};

enum { WATCHED_MAX = 64 };

struct options {
    enum mode mode;
    enum protocol protocol;
    const char *host; /* an IPv4 address */
    const char *path;
    unsigned port;
    unsigned connections;
    unsigned in_flight; /* messages per connection */
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

/* Ends the program with a message if the command line is wrong, and with a description for --help. */
struct options options_parse(int argc, char **argv);

#endif
