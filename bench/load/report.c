/* The clocks of the client and of the watched processes, and the one JSON object that the generator prints. */
#include <unistd.h>

#include "base.h"
#include "client.h"

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

struct reading report_read_clocks(const struct client *client)
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

static void report_cpu(const char *who, uint64_t cpu, uint64_t waited_for_cpu, double seconds, uint64_t messages)
{
    const double cpu_seconds = (double)cpu / NANOSECONDS_PER_SECOND;
    printf(", \"%s_cpu_seconds\": %.6f, \"%s_cpu_share\": %.4f, \"%s_waited_seconds\": %.6f", who, cpu_seconds, who,
           cpu_seconds / seconds, who, (double)waited_for_cpu / NANOSECONDS_PER_SECOND);
    if (messages > 0)
        printf(", \"%s_cpu_microseconds_per_message\": %.4f", who, cpu_seconds * 1e6 / (double)messages);
}

void report_print(const struct client *client, struct reading from, struct reading to)
{
    const struct options *options = &client->options;
    const struct counts *counts = &client->counts;
    const double seconds = (double)(to.at - from.at) / NANOSECONDS_PER_SECOND;
    static const struct { const char *name; double fraction; } quantiles[] = {
        {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}};

    printf("{\"mode\": \"%s\", \"connections\": %u, \"payload_bytes\": %zu, \"in_flight\": %u, \"text\": %s, "
           "\"verified\": %s, \"rate\": %.0f",
           options_mode_names[options->mode], options->connections, options->payload_bytes,
           options->in_flight, options->text ? "true" : "false", options->verify ? "true" : "false",
           options->messages_per_second);
    if (options->members > 0)
        printf(", \"members\": %u, \"stalled\": %u, \"published\": %llu", options->members, options->stalled,
               (unsigned long long)client->published);
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
