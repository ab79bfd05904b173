/* The phases of the load generator: open, warm up, measure, wait for the last replies, report. */
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

/* Values read at both ends of the window; the report shows their differences. */
struct reading {
    uint64_t at;
    uint64_t own_cpu;
    uint64_t own_waited; /* time in which the process was ready to run while the CPU did something else */
    uint64_t watched_cpu;
    uint64_t watched_waited;
};

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
    const unsigned completions = power_of_two_from((unsigned)clamp(4u * client->options.connections, 512, 16384));
    ring_open(&client->ring, 256, completions);
    pool_open(&client->read, &client->ring, 0, POOL_READ, client->options.verify ? 128 : 16, buffer_bytes);
    pool_open(&client->discard, &client->ring, 1, POOL_DISCARD, completions / 2, buffer_bytes);
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
    client->request_bytes =
        script_upgrade_request(client->request, sizeof client->request, options->host, options->port, options->path);
    open_ring(client);
    client->connections = allocate(options->connections, sizeof *client->connections);
    if (options->messages_per_second == 0) {
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
    if (wait > SLEEP_NANOSECONDS_MAX)
        wait = SLEEP_NANOSECONDS_MAX;
    ring_turn(&client->ring, client->options.spin ? 0 : wait);
    client->now = now_nanoseconds();
    handle_completions(client);
    if (client->now - client->last_progress > STALL_NANOSECONDS)
        fail("nothing came from the server for %d seconds: %u of %u connections are open, %llu messages wait for an "
             "answer", (int)(STALL_NANOSECONDS / NANOSECONDS_PER_SECOND), client->open, client->options.connections,
             (unsigned long long)client->outstanding);
}

static void run_until(struct client *client, uint64_t deadline)
{
    while (client->now < deadline)
        turn(client, deadline);
}

static uint64_t watched_cpu(const struct options *options)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < options->watched_count; i++) {
        clockid_t clock;
        if (clock_getcpuclockid(options->watched[i], &clock) != 0)
            fail("--watch: there is no process %d", (int)options->watched[i]);
        sum += clock_nanoseconds(clock);
    }
    return sum;
}

/* Reads the waiting time of a process's first thread; 0 if the kernel does not record it. */
static uint64_t waited(pid_t pid)
{
    char path[64];
    unsigned long long ran = 0, nanoseconds = 0;
    snprintf(path, sizeof path, "/proc/%d/schedstat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%llu %llu", &ran, &nanoseconds) != 2)
            nanoseconds = 0;
        fclose(file);
    }
    return nanoseconds;
}

static struct reading read_clocks(const struct client *client)
{
    struct reading reading = {
        .at = client->now,
        .own_cpu = clock_nanoseconds(CLOCK_PROCESS_CPUTIME_ID),
        .own_waited = waited(getpid()),
        .watched_cpu = watched_cpu(&client->options),
    };
    for (unsigned i = 0; i < client->options.watched_count; i++)
        reading.watched_waited += waited(client->options.watched[i]);
    return reading;
}

static void open_all(struct client *client)
{
    while (client->open < client->options.connections) {
        opening_continue(client);
        turn(client, UINT64_MAX);
    }
}

static void report_cpu(const char *who, uint64_t cpu, uint64_t waited_for_cpu, double seconds, uint64_t messages)
{
    const double cpu_seconds = (double)cpu / NANOSECONDS_PER_SECOND;
    printf(", \"%s_cpu_seconds\": %.6f, \"%s_cpu_share\": %.4f, \"%s_waited_seconds\": %.6f", who, cpu_seconds, who,
           cpu_seconds / seconds, who, (double)waited_for_cpu / NANOSECONDS_PER_SECOND);
    if (messages > 0)
        printf(", \"%s_cpu_microseconds_per_message\": %.4f", who, cpu_seconds * 1e6 / (double)messages);
}

static void report(const struct client *client, struct reading from, struct reading to)
{
    const struct options *options = &client->options;
    const struct counts *counts = &client->counts;
    const double seconds = (double)(to.at - from.at) / NANOSECONDS_PER_SECOND;
    static const struct { const char *name; double fraction; } quantiles[] = {
        {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}};

    printf("{\"mode\": \"%s\", \"connections\": %u, \"payload_bytes\": %zu, \"in_flight\": %u, \"text\": %s, "
           "\"verified\": %s, \"rate\": %.0f",
           options->mode == MODE_ECHO ? "echo" : "upgrade", options->connections, options->payload_bytes,
           options->in_flight, options->text ? "true" : "false", options->verify ? "true" : "false",
           options->messages_per_second);
    printf(", \"messages\": %llu, \"seconds\": %.6f, \"messages_per_second\": %.1f",
           (unsigned long long)counts->messages, seconds, (double)counts->messages / seconds);
    printf(", \"latency_microseconds\": {");
    for (unsigned i = 0; i < sizeof quantiles / sizeof *quantiles; i++)
        printf("%s\"%s\": %.1f", i > 0 ? ", " : "", quantiles[i].name,
               (double)histogram_quantile(&counts->latency, quantiles[i].fraction) / NANOSECONDS_PER_MICROSECOND);
    printf("}");
    report_cpu("client", to.own_cpu - from.own_cpu, to.own_waited - from.own_waited, seconds, counts->messages);
    if (options->watched_count > 0)
        report_cpu("server", to.watched_cpu - from.watched_cpu, to.watched_waited - from.watched_waited, seconds,
                   counts->messages);
    printf(", \"turns\": %llu, \"sends_short\": %llu, \"receives_ended\": %llu, \"unanswered\": %llu}\n",
           (unsigned long long)counts->turns, (unsigned long long)counts->sends_short,
           (unsigned long long)counts->receives_ended, (unsigned long long)counts->unanswered);
}

static void measure(struct client *client)
{
    const struct options *options = &client->options;
    if (options->mode == MODE_ECHO) {
        open_all(client);
        traffic_start(client);
    } else {
        opening_continue(client);
    }
    client->window_start = client->now + (uint64_t)(options->warmup_seconds * NANOSECONDS_PER_SECOND);
    client->window_end = client->window_start + (uint64_t)(options->seconds * NANOSECONDS_PER_SECOND);
    run_until(client, client->window_start);
    /* If the machine was stopped meanwhile, the window keeps its length. */
    client->window_end += client->now - client->window_start;
    client->window_start = client->now;

    memset(&client->counts, 0, sizeof client->counts);
    client->recording = true;
    const struct reading from = read_clocks(client);
    run_until(client, client->window_end);
    const struct reading to = read_clocks(client);
    client->recording = false;

    client->stopping = true;
    uint64_t deadline = client->now + DRAIN_NANOSECONDS;
    while (client->now < deadline && (client->outstanding > 0 || client->opening > 0))
        turn(client, deadline);
    if (options->messages_per_second > 0)
        traffic_count_unanswered(client);
    report(client, from, to);

    if (options->mode == MODE_ECHO)
        traffic_end(client);
    deadline = client->now + DRAIN_NANOSECONDS;
    while (client->now < deadline && client->open > 0)
        turn(client, deadline);
}

static void hold(struct client *client)
{
    open_all(client);
    printf("{\"ready\": %u}\n", client->open);
    fflush(stdout);
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
    else
        measure(&client);
    return 0;
}
