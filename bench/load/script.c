/* RFC 6455 on the client side, as far as a load generator needs it: frames, their replies, and the opening request. */
#include "script.h"

#include <stdio.h>
#include <string.h>

#include "base.h"

enum {
    HEADER_BYTES_MAX = 10, /* without the masking key */
    KEY_BYTES = 4,
    VERIFY_BYTES_MAX = 8 << 20,
    VARIANTS_MAX = 61, /* prime, so that losing a power of two of messages is noticed */
    BURST_BYTES_MAX = 64 << 20
};

/* A client must choose an unpredictable key per frame (RFC 6455 5.3). A benchmark need not: with a constant key the
 * frames are masked once, before the clock starts, and servers cannot tell the difference. This is the key of the
 * example in 5.7. */
static const uint8_t masking_key[KEY_BYTES] = {0x37, 0xfa, 0x21, 0x3d};

const uint8_t script_close_frame[8] = {0x88, 0x82, 0x37, 0xfa, 0x21, 0x3d, 0x03 ^ 0x37, 0xe8 ^ 0xfa};

/* Writes a header without a masking key; returns its length. */
static size_t put_header(uint8_t *to, bool text, size_t payload_bytes)
{
    size_t length = 0;
    to[length++] = text ? 0x81 : 0x82;
    if (payload_bytes < 126) {
        to[length++] = (uint8_t)payload_bytes;
        return length;
    }
    unsigned width = payload_bytes <= UINT16_MAX ? 2 : 8;
    to[length++] = width == 2 ? 126 : 127;
    for (unsigned i = width; i-- > 0;)
        to[length++] = (uint8_t)((uint64_t)payload_bytes >> (8 * i));
    return length;
}

/* Writes bytes without a period: all values for binary, printable ASCII for text. */
static void put_payload(uint8_t *to, bool text, size_t count, uint32_t seed)
{
    uint32_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        to[i] = text ? (uint8_t)(' ' + state % 95) : (uint8_t)state;
    }
}

static void put_frame(uint8_t *to, size_t header_bytes, const uint8_t *answer, size_t answer_bytes)
{
    memcpy(to, answer, header_bytes);
    to[1] |= 0x80;
    memcpy(to + header_bytes, masking_key, KEY_BYTES);
    uint8_t *payload = to + header_bytes + KEY_BYTES;
    for (size_t i = header_bytes; i < answer_bytes; i++)
        payload[i - header_bytes] = answer[i] ^ masking_key[(i - header_bytes) % KEY_BYTES];
}

struct script script_make(enum protocol protocol, bool text, size_t payload_bytes, unsigned burst_messages,
                          bool verify)
{
    uint8_t header[HEADER_BYTES_MAX];
    const size_t header_bytes = put_header(header, text, payload_bytes);
    const size_t unmasked_bytes = header_bytes + payload_bytes;
    struct script script = {.frame_bytes = unmasked_bytes + KEY_BYTES, .variants = 1};

    script.answer_bytes = protocol == PROTOCOL_TCP ? script.frame_bytes : unmasked_bytes;
    if (verify) {
        size_t fit = VERIFY_BYTES_MAX / script.frame_bytes;
        script.variants = fit < 2 ? 2 : fit > VARIANTS_MAX ? VARIANTS_MAX : (unsigned)fit;
    }
    size_t fit = BURST_BYTES_MAX / script.frame_bytes;
    script.burst_messages = fit < 1 ? 1 : fit < burst_messages ? (unsigned)fit : burst_messages;

    const unsigned frames = script.variants + script.burst_messages - 1;
    uint8_t *unmasked = allocate(script.variants, unmasked_bytes);
    script.frames = allocate(frames, script.frame_bytes);
    for (unsigned v = 0; v < script.variants; v++) {
        memcpy(unmasked + v * unmasked_bytes, header, header_bytes);
        put_payload(unmasked + v * unmasked_bytes + header_bytes, text, payload_bytes, v + 1);
    }
    for (unsigned f = 0; f < frames; f++)
        put_frame(script.frames + f * script.frame_bytes, header_bytes,
                  unmasked + (f % script.variants) * unmasked_bytes, unmasked_bytes);
    if (protocol == PROTOCOL_TCP) {
        script.answers = script.frames;
        free(unmasked);
    } else {
        script.answers = unmasked;
    }
    return script;
}

size_t script_first_difference(const struct script *script, uint64_t offset, const uint8_t *bytes, size_t count)
{
    const size_t period = script->variants * script->answer_bytes;
    size_t done = 0;
    while (done < count) {
        const uint8_t *expected = script->answers + (offset + done) % period;
        size_t piece = period - (offset + done) % period;
        if (piece > count - done)
            piece = count - done;
        if (memcmp(bytes + done, expected, piece) != 0) {
            while (bytes[done] == *expected++)
                done++;
            return done;
        }
        done += piece;
    }
    return count;
}

size_t script_upgrade_request(char *request, size_t room, const char *host, unsigned port, const char *path)
{
    int length = snprintf(request, room,
                          "GET %s HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          path, host, port);
    if (length < 0 || (size_t)length >= room)
        fail("the host and path are too long for a request of %zu bytes", room);
    return (size_t)length;
}

const char *script_upgrade_accept(void)
{
    return "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; /* the accept value for the key above, RFC 6455 1.3 */
}
