/* Finds the end of the head of an opening request. A peer that speaks another protocol is refused at once: otherwise it
 * would wait for the server, and hold a session until the deadline. */
#define _GNU_SOURCE
#include "head.h"

#include <string.h>

enum {
    PROXY_V1_BYTES_MAX = 107,            /* proxy-protocol.txt 2.1, including the CRLF */
    PROXY_V2_BYTES = 16,                 /* 2.2: up to and including the length of the rest */
    METHOD_BYTES_MAX = 32,               /* the longest registered method has 17 */
    VERSION_BYTES = 9                    /* " HTTP/1.1" */
};

static bool is_prefix(const uint8_t *data, size_t bytes, const char *text, size_t text_bytes)
{
    return memcmp(data, text, urs_min(bytes, text_bytes)) == 0;
}

/* The size of a PROXY header at the start of the data; 0 for none, SIZE_MAX while that is unknown. */
static size_t proxy_bytes(const uint8_t *data, size_t bytes)
{
    static const char signature[] = "\r\n\r\n\0\r\nQUIT\n";
    static const char word[] = "PROXY ";
    if (is_prefix(data, bytes, signature, sizeof signature - 1)) {
        if (bytes < PROXY_V2_BYTES)
            return SIZE_MAX;
        return PROXY_V2_BYTES + ((size_t)data[14] << 8 | data[15]);
    }
    if (!is_prefix(data, bytes, word, sizeof word - 1))
        return 0;
    const uint8_t *end = memmem(data, urs_min(bytes, PROXY_V1_BYTES_MAX), "\r\n", 2);
    if (end != NULL)
        return (size_t)(end - data) + 2;
    return bytes < PROXY_V1_BYTES_MAX ? SIZE_MAX : 0;
}

static bool is_upper(uint8_t byte) { return byte >= 'A' && byte <= 'Z'; }
static bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

/* Whether a first line, including its CRLF, ends like a first line of HTTP. */
static bool names_http(const uint8_t *line, size_t bytes)
{
    if (bytes < VERSION_BYTES + 2 || line[bytes - 2] != '\r')
        return false;
    const uint8_t *version = line + bytes - 2 - VERSION_BYTES;
    return memcmp(version, " HTTP/", 6) == 0 && is_digit(version[6]) && version[7] == '.' && is_digit(version[8]);
}

/* Whether bytes without an empty line may be the beginning of a head. The bytes in front of `seen` were checked
 * earlier. */
static bool may_begin(const uint8_t *head, size_t bytes, size_t seen)
{
    size_t method = 0;
    while (method < bytes && method <= METHOD_BYTES_MAX && (is_upper(head[method]) || head[method] == '-'))
        method++;
    if (method > METHOD_BYTES_MAX || (method < bytes && head[method] != ' '))
        return false;
    const uint8_t *line_feed = memchr(head, '\n', bytes);
    if (line_feed == NULL)
        return true;
    if (!names_http(head, (size_t)(line_feed - head) + 1))
        return false;
    /* Only the new bytes are read: otherwise a head that arrives byte by byte would be read again for each byte. */
    line_feed = memchr(head + seen, '\n', bytes - seen);
    while (line_feed != NULL) {
        if (line_feed == head || line_feed[-1] != '\r')
            return false;
        line_feed++;
        line_feed = memchr(line_feed, '\n', bytes - (size_t)(line_feed - head));
    }
    return true;
}

int64_t urs_head_find(const uint8_t *data, size_t bytes, size_t seen, const struct urs_head_rules *rules)
{
    URS_ASSERT(bytes > 0 && seen <= bytes);
    size_t start = rules->proxy_protocol ? urs_min(proxy_bytes(data, bytes), bytes) : 0;
    if (start < bytes && data[start] == '\r') {
        if (bytes - start == 1)
            start = bytes;  /* the first half of an empty line */
        else if (data[start + 1] == '\n')
            start += 2;
    }
    const uint8_t *end = NULL;
    if (start < bytes) {
        end = memmem(data + start, bytes - start, "\r\n\r\n", 4);
        size_t seen_of_head = seen > start ? seen - start : 0;
        if (!is_upper(data[start]) || (end == NULL && !may_begin(data + start, bytes - start, seen_of_head)))
            return URS_ERROR_REQUEST;
    }
    size_t have = end == NULL ? bytes : (size_t)(end - data) + 4;
    if (have > rules->bytes_max)
        return URS_ERROR_TOO_BIG;
    return end == NULL ? 0 : (int64_t)have;
}
