/* Latencies in nanoseconds, counted in the buckets of an HdrHistogram: every power of two is divided into 128 equal
 * parts, so that any value is known to 0.8 %, in constant time and memory. */
#ifndef LOAD_HISTOGRAM_H
#define LOAD_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_PART_BITS = 7,
    HISTOGRAM_PARTS = 1 << HISTOGRAM_PART_BITS,
    HISTOGRAM_VALUE_BITS = 40, /* 2^40 ns: eighteen minutes */
    HISTOGRAM_BUCKETS = (HISTOGRAM_VALUE_BITS - HISTOGRAM_PART_BITS + 1) * HISTOGRAM_PARTS
};

struct histogram {
    uint64_t count;
    uint64_t value_max; /* exact */
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* Counts `value` `count` times; a value with more than HISTOGRAM_VALUE_BITS bits is counted in the largest bucket. */
void histogram_record(struct histogram *histogram, uint64_t value, uint64_t count);

/* Returns the value that `fraction` (0 to 1) of all values do not exceed: the upper edge of its bucket, and never more
 * than the largest recorded value. Returns 0 if there are no values. */
uint64_t histogram_quantile(const struct histogram *histogram, double fraction);

#endif
