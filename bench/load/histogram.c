/* The buckets of histogram.h: the bucket of a value, and the end of a bucket. */
#include "histogram.h"

/* Values below HISTOGRAM_PARTS have one bucket each; for larger ones the top HISTOGRAM_PART_BITS + 1 bits choose the
 * bucket. */
static unsigned bucket_of(uint64_t value)
{
    if (value < HISTOGRAM_PARTS)
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_PART_BITS;
    return (shift + 1) * HISTOGRAM_PARTS + (unsigned)(value >> shift) - HISTOGRAM_PARTS;
}

static uint64_t upper_edge(unsigned bucket)
{
    if (bucket < HISTOGRAM_PARTS)
        return bucket;
    unsigned shift = bucket / HISTOGRAM_PARTS - 1;
    uint64_t part = bucket % HISTOGRAM_PARTS + HISTOGRAM_PARTS;
    return ((part + 1) << shift) - 1;
}

void histogram_record(struct histogram *histogram, uint64_t value, uint64_t count)
{
    const uint64_t limit = (UINT64_C(1) << HISTOGRAM_VALUE_BITS) - 1;
    if (value > limit)
        value = limit;
    if (value > histogram->value_max)
        histogram->value_max = value;
    histogram->count += count;
    histogram->buckets[bucket_of(value)] += count;
}

uint64_t histogram_quantile(const struct histogram *histogram, double fraction)
{
    if (histogram->count == 0)
        return 0;
    /* The rank of the requested value, counted from one: 0.5 of three values is the second. */
    double exact = fraction * (double)histogram->count;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact || rank == 0)
        rank++;

    uint64_t seen = 0;
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen >= rank) {
            uint64_t edge = upper_edge(bucket);
            return edge < histogram->value_max ? edge : histogram->value_max;
        }
    }
    return histogram->value_max;
}
