/* The layout of the pool. */
#include "pool.h"

#include <errno.h>

enum { LINE_BYTES = 64, BUFFERS_MAX = 32768, BUFFER_BYTES_MIN = 256, BUFFER_BYTES_MAX = 1 << 24 };

static size_t stride_of(size_t buffer_bytes) { return (buffer_bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES; }

size_t urs_pool_bytes(uint32_t buffers, size_t buffer_bytes)
{
    if (buffers < 2 || buffers > BUFFERS_MAX || (buffers & (buffers - 1)) != 0
        || buffer_bytes < BUFFER_BYTES_MIN || buffer_bytes > BUFFER_BYTES_MAX)
        return 0;
    uint64_t bytes = (uint64_t)stride_of(buffer_bytes) * buffers;
    return bytes < UINT32_MAX ? (size_t)bytes : 0;
}

int urs_pool_open(struct urs_pool *pool, uint8_t *memory, uint32_t buffers, size_t buffer_bytes)
{
    if (memory == NULL || urs_pool_bytes(buffers, buffer_bytes) == 0)
        return -EINVAL;
    *pool = (struct urs_pool){
        .memory = memory, .buffer_bytes = buffer_bytes, .stride = stride_of(buffer_bytes), .buffers = buffers};
    return 0;
}
