/* The options of the command line, and the messages for a wrong one. */
#include "options.h"

#include <getopt.h>
#include <string.h>

#include "base.h"

static const char usage[] =
    "usage: load --port PORT [options]\n"
    "\n"
    "Puts a load on a WebSocket echo server and prints one JSON object about it.\n"
    "\n"
    "  --mode MODE              echo (default), upgrade (connect, upgrade, close, again), idle (hold, until\n"
    "                           standard input ends; prints a line when all stand), and those of a server that\n"
    "                           publishes: fanout, chat, backlog (see below)\n"
    "  --host ADDRESS           IPv4, 127.0.0.1 by default\n"
    "  --port PORT\n"
    "  --path PATH              of the upgrade request, / by default\n"
    "  --protocol PROTOCOL      websocket (default) or tcp (the same bytes without upgrade, for a bare echo)\n"
    "  --connections N          1 by default\n"
    "  --payload-bytes N        20 by default\n"
    "  --in-flight N            messages per connection that wait for their answer, 1 by default\n"
    "  --text                   text messages instead of binary ones\n"
    "  --verify                 compare every byte of every answer; without it, all of one connection's and the\n"
    "                           first of each, while the kernel drops the others' instead of copying them\n"
    "  --rate N                 messages per second of all connections together, sent when they are due, answered or\n"
    "                           not; latencies count from when a message was due\n"
    "  --spin                   never sleep\n"
    "  --warmup-seconds N       0.2 by default\n"
    "  --seconds N              1 by default\n"
    "  --core N                 run on this CPU only\n"
    "  --watch PID              report the CPU time this process used meanwhile; may be repeated\n"
    "\n"
    "A server that publishes knows a connection by the path of its upgrade request: it publishes what /publisher sends\n"
    "to every /member, and what a /chat sends to every /chat, and echoes on any other path. The unit is a message\n"
    "received by a member.\n"
    "\n"
    "  --mode fanout            a publisher sends --in-flight messages at once, and the next ones when every member has\n"
    "                           received the last ones\n"
    "  --mode chat              every member sends --in-flight messages, and the next ones when every member has\n"
    "                           received the last ones of all members\n"
    "  --mode backlog           prints a line when all members stand, publishes after a line of standard input, prints\n"
    "                           a line, and after another line lets the stalled members read and compares every byte\n"
    "  --members N              with --mode echo: beside the echo connections; they read after the window\n"
    "  --stalled N              so many of the members do not read; their sockets take little\n"
    "  --publishes N            with --mode backlog: how many messages\n"
    "  --publish-rate N         with --mode echo: messages published per second, when they are due\n";

static double number(const char *name, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= most))
        fail("--%s must be a number from %g to %g, not \"%s\"", name, least, most, text);
    return value;
}

static unsigned whole(const char *name, const char *text, double least, double most)
{
    double value = number(name, text, least, most);
    if (value != (double)(unsigned)value)
        fail("--%s must be a whole number, not \"%s\"", name, text);
    return (unsigned)value;
}

static unsigned choice(const char *name, const char *text, const char *const *names, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    fail("--%s does not know \"%s\" (see --help)", name, text);
}

static const struct option long_options[] = {
    {"mode", required_argument, NULL, 'm'},        {"host", required_argument, NULL, 'h'},
    {"port", required_argument, NULL, 'p'},        {"path", required_argument, NULL, 'a'},
    {"protocol", required_argument, NULL, 'o'},    {"connections", required_argument, NULL, 'c'},
    {"payload-bytes", required_argument, NULL, 'b'}, {"in-flight", required_argument, NULL, 'f'},
    {"text", no_argument, NULL, 't'},              {"verify", no_argument, NULL, 'v'},
    {"rate", required_argument, NULL, 'r'},        {"spin", no_argument, NULL, 's'},
    {"warmup-seconds", required_argument, NULL, 'w'}, {"seconds", required_argument, NULL, 'd'},
    {"core", required_argument, NULL, 'k'},        {"watch", required_argument, NULL, 'i'},
    {"members", required_argument, NULL, 'M'},     {"stalled", required_argument, NULL, 'S'},
    {"publishes", required_argument, NULL, 'P'},   {"publish-rate", required_argument, NULL, 'R'},
    {"help", no_argument, NULL, 'H'},              {NULL, 0, NULL, 0}};

const char *const options_mode_names[MODES] = {
    [MODE_ECHO] = "echo",     [MODE_UPGRADE] = "upgrade", [MODE_IDLE] = "idle",
    [MODE_FANOUT] = "fanout", [MODE_CHAT] = "chat",       [MODE_BACKLOG] = "backlog"};

static void set(struct options *options, int key, const char *name, const char *value)
{
    static const char *const protocols[] = {[PROTOCOL_WEBSOCKET] = "websocket", [PROTOCOL_TCP] = "tcp"};

    switch (key) {
    case 'm': options->mode = (enum mode)choice(name, value, options_mode_names, MODES); break;
    case 'o': options->protocol = (enum protocol)choice(name, value, protocols, 2); break;
    case 'h': options->host = value; break;
    case 'a': options->path = value; break;
    case 'p': options->port = whole(name, value, 1, 65535); break;
    case 'c': options->connections = whole(name, value, 1, 1 << 20); break;
    case 'b': options->payload_bytes = whole(name, value, 0, 1 << 30); break;
    case 'f': options->in_flight = whole(name, value, 1, 4096); break;
    case 't': options->text = true; break;
    case 'v': options->verify = true; break;
    case 's': options->spin = true; break;
    case 'r': options->messages_per_second = number(name, value, 1, 1e9); break;
    case 'w': options->warmup_seconds = number(name, value, 0, 3600); break;
    case 'd': options->seconds = number(name, value, 0.01, 3600); break;
    case 'k': options->core = (int)whole(name, value, 0, 4095); break;
    case 'M': options->members = whole(name, value, 1, 1 << 20); break;
    case 'S': options->stalled = whole(name, value, 0, 1 << 20); break;
    case 'P': options->publishes = whole(name, value, 1, 1 << 30); break;
    case 'R': options->publishes_per_second = number(name, value, 0.1, 1e6); break;
    case 'i':
        if (options->watched_count == WATCHED_MAX)
            fail("--watch is possible for %d processes", WATCHED_MAX);
        options->watched[options->watched_count++] = (pid_t)whole(name, value, 1, 1 << 30);
        break;
    }
}

/* The options of servers that publish, each with the modes it is for. */
static void check_publishing(struct options *options)
{
    const bool publishes = options_publish(options);
    if (publishes && options->members == 0)
        fail("--mode %s needs --members", options_mode_names[options->mode]);
    if (options->members > 0 && !publishes && options->mode != MODE_ECHO)
        fail("--members needs --mode fanout, chat, backlog or echo");
    if (options->members > 0 && options->mode == MODE_ECHO &&
        (options->publishes_per_second == 0 || options->protocol == PROTOCOL_TCP))
        fail("--members with --mode echo needs --publish-rate and --protocol websocket");
    if (options->publishes_per_second > 0 && (options->mode != MODE_ECHO || options->members == 0))
        fail("--publish-rate needs --mode echo and --members");
    if (options->stalled > 0 && options->mode != MODE_FANOUT && options->mode != MODE_BACKLOG)
        fail("--stalled needs --mode fanout or backlog");
    if (options->stalled > 0 && options->stalled >= options->members)
        fail("--stalled must leave a member that reads");
    if ((options->publishes > 0) != (options->mode == MODE_BACKLOG))
        fail("--publishes and --mode backlog belong together");
    if (publishes)
        options->connections = 0;
}

struct options options_parse(int argc, char **argv)
{
    struct options options = {.host = "127.0.0.1", .path = "/", .connections = 1, .in_flight = 1, .payload_bytes = 20,
                              .warmup_seconds = 0.2, .seconds = 1, .core = -1};
    int key, index = 0;
    opterr = 0;
    while ((key = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (key == 'H') {
            fputs(usage, stdout);
            exit(0);
        }
        if (key == '?')
            fail("%s is not an option, or lacks its value (see --help)", argv[optind - 1]);
        set(&options, key, long_options[index].name, optarg);
    }
    if (optind < argc)
        fail("%s: there are no positional arguments (see --help)", argv[optind]);
    if (options.port == 0)
        fail("--port is needed (see --help)");
    if (options.protocol == PROTOCOL_TCP && options.mode == MODE_UPGRADE)
        fail("--mode upgrade needs --protocol websocket");
    if (options.messages_per_second > 0 && options.mode != MODE_ECHO)
        fail("--rate needs --mode echo");
    check_publishing(&options);
    return options;
}
