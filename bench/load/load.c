/* The phases of the load generator: open, warm up, measure, wait for the last replies, end. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base.h"
#include "client.h"

#define STALL_NANOSECONDS (UINT64_C(10) * NANOSECONDS_PER_SECOND) /* no completion for this long: the server hangs */
#define DRAIN_NANOSECONDS (UINT64_C(1) * NANOSECONDS_PER_SECOND)  /* how long to wait for the last replies after the
                                                                     window */
#define SLEEP_NANOSECONDS_MAX (UINT64_C(100) * NANOSECONDS_PER_MILLISECOND)

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fail("cannot run on CPU %d: %s", core, strerror(errno));
}

static size_t clamp(size_t value, size_t least, size_t most)
{
    return value < least ? least : value > most ? most : value;
}

static unsigned power_of_two_from(unsigned least)
{
    unsigned power = 1;
    while (power < least)
        power *= 2;
    return power;
}

/* Buffers whose bytes are not read cost nothing, so there may be enough for all connections at once. */
static void open_ring(struct client *client)
{
    const unsigned buffer_bytes = (unsigned)clamp(client->script.answer_bytes, 17 << 10, 256 << 10);
    const unsigned completions = power_of_two_from((unsigned)clamp(4u * client->connection_count, 512, 16384));
    ring_open(&client->ring, 256, completions);
    pool_open(&client->read, &client->ring, 0, POOL_READ, client->options.verify ? 128 : 16, buffer_bytes);
    pool_open(&client->discard, &client->ring, 1, POOL_DISCARD, completions / 2, buffer_bytes);
}

/* Makes the connections and, for each role, the first bytes that a connection sends. */
static void lay_out(struct client *client)
{
    const struct options *options = &client->options;
    const bool publisher = options->members > 0 && options->mode != MODE_CHAT;
    const char *const paths[ROLES] = {[ROLE_ECHO] = options->path, [ROLE_MEMBER] = "/member",
                                      [ROLE_CHATTER] = "/chat", [ROLE_PUBLISHER] = "/publisher"};
    static const char letters[ROLES] = {[ROLE_MEMBER] = 'm', [ROLE_CHATTER] = 'c', [ROLE_PUBLISHER] = 'p'};

    client->connection_count = options->connections + options->members + publisher;
    client->connections = allocate(client->connection_count, sizeof *client->connections);
    client->members = client->connections + options->connections;
    client->publisher = publisher ? client->members + options->members : NULL;
    for (unsigned role = 0; role < ROLES; role++) {
        if (options->protocol == PROTOCOL_TCP) {
            client->requests[role].bytes[0] = letters[role];
            client->requests[role].count = 1;
        } else {
            client->requests[role].count =
                script_upgrade_request(client->requests[role].bytes, sizeof client->requests[role].bytes,
                                       options->host, options->port, paths[role]);
        }
    }
}

static void prepare(struct client *client)
{
    const struct options *options = &client->options;
    /* Open loop: a connection that is late may catch up with bursts of more than one message. */
    const unsigned burst = options->messages_per_second > 0 ? 64 : options->in_flight;

    raise_descriptor_limit();
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (options->core >= 0)
        pin(options->core);
    client->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    if (inet_pton(AF_INET, options->host, &client->address.sin_addr) != 1)
        fail("--host must be an IPv4 address, not \"%s\"", options->host);
    client->script = script_make(options->protocol, options->text, options->payload_bytes, burst, options->verify);
    lay_out(client);
    open_ring(client);
    if (options->messages_per_second == 0 && options->connections > 0) {
        struct burst *bursts = allocate((size_t)options->connections * options->in_flight, sizeof *bursts);
        for (unsigned i = 0; i < options->connections; i++)
            client->connections[i].bursts = bursts + (size_t)i * options->in_flight;
    }
    client->now = client->last_progress = now_nanoseconds();
}

static void handle_completions(struct client *client)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&client->ring.uring, head, cqe) {
        const uint64_t tag = io_uring_cqe_get_data64(cqe);
        struct connection *connection = tag_connection(client, tag);
        if (connection->awaited == AWAIT_ANSWERS)
            traffic_complete(client, connection, tag_request(tag), cqe);
        else
            opening_complete(client, connection, tag_request(tag), cqe->res);
        count++;
    }
    io_uring_cq_advance(&client->ring.uring, count);
    client->counts.turns++;
    if (count > 0)
        client->last_progress = client->now;
}

/* Runs one turn: submits everything queued and handles everything that arrived. Returns no later than `deadline`. */
static void turn(struct client *client, uint64_t deadline)
{
    uint64_t wait = deadline > client->now ? deadline - client->now : 1;
    if (client->rate_start != 0 && client->options.messages_per_second > 0) {
        uint64_t until_due = traffic_release(client);
        wait = until_due < wait ? until_due : wait;
    }
    if (client->rate_start != 0 && client->options.publishes_per_second > 0) {
        uint64_t until_due = fanout_release(client);
        wait = until_due < wait ? until_due : wait;
    }
    if (wait > SLEEP_NANOSECONDS_MAX)
        wait = SLEEP_NANOSECONDS_MAX;
    ring_turn(&client->ring, client->options.spin ? 0 : wait);
    client->now = now_nanoseconds();
    handle_completions(client);
    if (client->now - client->last_progress > STALL_NANOSECONDS)
        fail("nothing came from the server for %d seconds: %u of %u connections are open, %llu messages wait for an "
             "answer", (int)(STALL_NANOSECONDS / NANOSECONDS_PER_SECOND), client->open, client->connection_count,
             (unsigned long long)client->outstanding);
}

static void run_until(struct client *client, uint64_t deadline)
{
    while (client->now < deadline)
        turn(client, deadline);
}

static void open_all(struct client *client)
{
    while (client->open < client->connection_count) {
        opening_continue(client);
        turn(client, UINT64_MAX);
    }
}

/* Sends and receives until `deadline`. */
static void exchange_until(struct client *client, uint64_t deadline)
{
    if (options_publish(&client->options))
        fanout_run_until(client, deadline);
    else
        run_until(client, deadline);
}

static void start(struct client *client)
{
    if (client->options.mode == MODE_UPGRADE) {
        opening_continue(client);
        return;
    }
    open_all(client);
    if (client->options.members > 0)
        fanout_prove(client);
    traffic_start(client);
}

/* Waits for the last replies; a missing one is lost, or is counted as unanswered. */
static void drain(struct client *client)
{
    client->stopping = true;
    const uint64_t deadline = client->now + DRAIN_NANOSECONDS;
    while (client->now < deadline && (client->outstanding > 0 || client->opening > 0))
        turn(client, deadline);
    if (client->options.messages_per_second > 0)
        traffic_count_unanswered(client);
    if (client->options.members > 0) {
        members_take(client);
        members_expect_nothing(client);
    }
}

static void end(struct client *client)
{
    if (client->options.mode != MODE_UPGRADE)
        traffic_end(client);
    if (client->options.members > 0)
        members_end(client);
    client->now = now_nanoseconds();
    const uint64_t deadline = client->now + DRAIN_NANOSECONDS;
    while (client->now < deadline && client->open > 0)
        turn(client, deadline);
}

static void measure(struct client *client)
{
    const struct options *options = &client->options;
    start(client);
    client->window_start = client->now + (uint64_t)(options->warmup_seconds * NANOSECONDS_PER_SECOND);
    client->window_end = client->window_start + (uint64_t)(options->seconds * NANOSECONDS_PER_SECOND);
    exchange_until(client, client->window_start);
    /* If the machine was stopped meanwhile, the window keeps its length. */
    client->window_end += client->now - client->window_start;
    client->window_start = client->now;

    memset(&client->counts, 0, sizeof client->counts);
    client->recording = true;
    const struct reading from = report_read_clocks(client);
    exchange_until(client, client->window_end);
    const struct reading to = report_read_clocks(client);
    client->recording = false;

    drain(client);
    report_print(client, from, to);
    end(client);
}

/* Waits until standard input has a line or has ended. */
static void read_line(void)
{
    char byte = '\0';
    ssize_t count;
    do
        count = read(STDIN_FILENO, &byte, 1);
    while ((count > 0 && byte != '\n') || (count < 0 && errno == EINTR));
}

static void say(const char *what, uint64_t count)
{
    printf("{\"%s\": %llu}\n", what, (unsigned long long)count);
    fflush(stdout);
}

/* The caller reads the server's memory between the lines. */
static void pile_up(struct client *client)
{
    open_all(client);
    fanout_prove(client);
    say("ready", client->open);
    read_line();
    fanout_publish(client, client->options.publishes);
    say("published", client->published);
    read_line();
    members_take_stalled(client);
    members_expect_nothing(client);
    say("taken", client->published);
    end(client);
}

static void hold(struct client *client)
{
    open_all(client);
    say("ready", client->open);
    char byte;
    ssize_t count;
    do
        count = read(STDIN_FILENO, &byte, 1);
    while (count > 0 || (count < 0 && errno == EINTR));
}

int main(int argc, char **argv)
{
    static struct client client;
    client.options = options_parse(argc, argv);
    prepare(&client);
    if (client.options.mode == MODE_IDLE)
        hold(&client);
    else if (client.options.mode == MODE_BACKLOG)
        pile_up(&client);
    else
        measure(&client);
    return 0;
}
