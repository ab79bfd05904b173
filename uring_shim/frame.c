/* Frame headers, RFC 6455 5.2. Only the rules that a single header can break are checked here. No state is kept between
 * frames. */
#include "frame.h"

#include <string.h>

enum {
    RSV = 0x70,
    OPCODE = 0x0F,
    OPCODE_CONTROL = 0x08,
    LENGTH = 0x7F,
    LENGTH_16 = 126, /* the next 2 bytes hold the length */
    LENGTH_64 = 127, /* the next 8 bytes hold the length */
    KEY_BYTES = 4
};

/* The opcodes that RFC 6455 11.8 registers, as a bit set. */
static const unsigned opcodes_known =
    1U << URS_OPCODE_CONTINUATION | 1U << URS_OPCODE_TEXT | 1U << URS_OPCODE_BINARY |
    1U << URS_OPCODE_CLOSE | 1U << URS_OPCODE_PING | 1U << URS_OPCODE_PONG;

/* Big-endian loads from any address, written so that compilers turn them into one load and one swap. */
static inline uint32_t load_16(const uint8_t *data) { return (uint32_t)data[0] << 8 | data[1]; }
static inline uint32_t load_32(const uint8_t *data) { return load_16(data) << 16 | load_16(data + 2); }
static inline uint64_t load_64(const uint8_t *data) { return (uint64_t)load_32(data) << 32 | load_32(data + 4); }

static inline int check_first_byte(unsigned byte, int rules)
{
    unsigned opcode = byte & OPCODE;
    /* RSV1 marks the first frame of a compressed message, never a control frame or a continuation: RFC 7692 6. */
    bool rsv1_allowed = (rules & URS_FRAME_RSV1_ALLOWED) && !(opcode & OPCODE_CONTROL) &&
                        opcode != URS_OPCODE_CONTINUATION;

    if (byte & RSV & ~(rsv1_allowed ? (unsigned)URS_FRAME_RSV1 : 0U))
        return URS_ERROR_RSV;
    if (!(opcodes_known >> opcode & 1))
        return URS_ERROR_OPCODE;
    if ((opcode & OPCODE_CONTROL) && !(byte & URS_FRAME_FIN))
        return URS_ERROR_CONTROL_FRAGMENTED;
    return 0;
}

static inline int check_second_byte(unsigned byte, unsigned opcode, int rules)
{
    if ((rules & URS_FRAME_FROM_CLIENT) && !(byte & URS_FRAME_MASKED))
        return URS_ERROR_UNMASKED;
    if ((rules & URS_FRAME_FROM_SERVER) && (byte & URS_FRAME_MASKED))
        return URS_ERROR_MASKED;
    if ((opcode & OPCODE_CONTROL) && (byte & LENGTH) > URS_FRAME_CONTROL_BYTES_MAX)
        return URS_ERROR_CONTROL_LENGTH;
    return 0;
}

/* Checks the first `bytes` bytes of an extended length of `length_bytes` bytes. Returns the error that they prove, or
 * 0. */
static inline int check_length(const uint8_t *data, size_t bytes, size_t length_bytes)
{
    if (length_bytes == 2)
        return bytes >= 2 && load_16(data) < LENGTH_16 ? URS_ERROR_LENGTH_NOT_MINIMAL : 0;
    if (bytes >= 1 && (data[0] & 0x80))
        return URS_ERROR_LENGTH_TOP_BIT;
    /* The length is below 65536 if the upper six of the eight bytes are zero. */
    return bytes >= 6 && !(load_32(data) | load_16(data + 4)) ? URS_ERROR_LENGTH_NOT_MINIMAL : 0;
}

int urs_frame_parse(const uint8_t *data, size_t bytes, int rules, struct urs_frame_header *header)
{
    header->header_bytes = 2;
    if (bytes < 1)
        return 0;
    int error = check_first_byte(data[0], rules);
    if (URS_UNLIKELY(error))
        return error;
    if (bytes < 2)
        return 0;
    error = check_second_byte(data[1], data[0] & OPCODE, rules);
    if (URS_UNLIKELY(error))
        return error;

    unsigned length = data[1] & LENGTH;
    size_t length_bytes = length < LENGTH_16 ? 0 : length == LENGTH_16 ? 2 : 8;
    bool masked = data[1] & URS_FRAME_MASKED;
    size_t header_bytes = 2 + length_bytes + (masked ? KEY_BYTES : 0);

    header->header_bytes = (uint8_t)header_bytes;
    if (length_bytes) {
        error = check_length(data + 2, urs_min(bytes - 2, length_bytes), length_bytes);
        if (URS_UNLIKELY(error))
            return error;
    }
    if (bytes < header_bytes)
        return 0;

    header->payload_bytes = length_bytes == 0 ? length : length_bytes == 2 ? load_16(data + 2) : load_64(data + 2);
    header->fin = data[0] & URS_FRAME_FIN;
    header->rsv = (data[0] & RSV) >> 4;
    header->opcode = data[0] & OPCODE;
    header->masked = masked;
    memset(header->masking_key, 0, KEY_BYTES);
    if (masked)
        memcpy(header->masking_key, data + header_bytes - KEY_BYTES, KEY_BYTES);
    return (int)header_bytes;
}

size_t urs_frame_answer_bytes(uint64_t payload_bytes)
{
    return payload_bytes < LENGTH_16 ? 2 : payload_bytes <= UINT16_MAX ? 4 : 10;
}

size_t urs_frame_write(uint8_t *target, uint8_t opcode, bool fin, uint64_t payload_bytes)
{
    size_t header_bytes = urs_frame_answer_bytes(payload_bytes);

    target[0] = (uint8_t)((fin ? URS_FRAME_FIN : 0) | opcode);
    target[1] = (uint8_t)(header_bytes == 2 ? payload_bytes : header_bytes == 4 ? LENGTH_16 : LENGTH_64);
    for (size_t i = header_bytes; i > 2; i--) {
        target[i - 1] = (uint8_t)payload_bytes;
        payload_bytes >>= 8;
    }
    return header_bytes;
}

bool urs_frame_close_code_ok(unsigned code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}
