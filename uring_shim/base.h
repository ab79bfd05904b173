/* Definitions that every other file of the shim may use: error codes, RFC 6455 constants, small helpers. No state, no
 * I/O, and only inline functions. */
#ifndef URS_BASE_H
#define URS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* Results below -4096 are errors of the library; -4095 .. -1 are -errno; >= 0 is success or a count. */
enum urs_error {
    URS_ERROR_BASE = -4096,
    URS_ERROR_RSV = -4097,               /* a reserved bit is set, RFC 6455 5.2 */
    URS_ERROR_OPCODE = -4098,            /* a reserved opcode, 5.2 */
    URS_ERROR_CONTROL_FRAGMENTED = -4099,/* a control frame without FIN, 5.5 */
    URS_ERROR_CONTROL_LENGTH = -4100,    /* a control frame over 125 bytes, 5.5 */
    URS_ERROR_LENGTH_NOT_MINIMAL = -4101,/* a control frame with over 125 bytes, 5.5 */
    URS_ERROR_LENGTH_TOP_BIT = -4102,    /* a length that a shorter form could hold, 5.2 */
    URS_ERROR_UNMASKED = -4103,          /* a client's frame without a mask, 5.1 */
    URS_ERROR_MASKED = -4104,            /* a server's frame with a mask, 5.1 */
    URS_ERROR_CONTINUATION = -4105,      /* a continuation of nothing, 5.4 */
    URS_ERROR_INTERLEAVED = -4106,       /* a continuation without a message begun, 5.4 */
    URS_ERROR_CLOSE_PAYLOAD = -4107,     /* a close frame of one byte, 5.5.1 */
    URS_ERROR_CLOSE_CODE = -4108,        /* a close code that may not be sent, 7.4 */
    URS_ERROR_UTF8 = -4109,              /* text or a close reason that is not UTF-8, 8.1 */
    URS_ERROR_TOO_BIG = -4110,           /* a message over message_bytes_max */
    URS_ERROR_REFUSED_OPCODE = -4111,    /* a type (text or binary) that the options refuse, 7.4.1 (1003) */
    URS_ERROR_STALE = -4112,             /* the id's session is gone */
    URS_ERROR_CLOSING = -4113,           /* the session's close handshake has begun: nothing more may be sent */
    URS_ERROR_FULL = -4114,              /* backlog_bytes_max would be exceeded */
    URS_ERROR_LIMIT = -4115,             /* a limit of the options is reached */
    URS_ERROR_MEMORY_BUDGET = -4116,     /* memory_bytes_max would be exceeded */
    URS_ERROR_STATE = -4117,             /* the call is not allowed in this state */
    URS_ERROR_REQUEST = -4118,           /* the bytes are not an HTTP request */
    URS_ERROR_THREAD = -4119,            /* a call from a thread that does not own the reactor */
    URS_ERROR_FORKED = -4120,            /* the reactor belongs to the parent process */
    URS_ERROR_COMPRESSION = -4121        /* a compressed message that is no DEFLATE stream, RFC 7692 7.2.2 */
};

enum urs_opcode {
    URS_OPCODE_CONTINUATION = 0x0,
    URS_OPCODE_TEXT = 0x1,
    URS_OPCODE_BINARY = 0x2,
    URS_OPCODE_CLOSE = 0x8,
    URS_OPCODE_PING = 0x9,
    URS_OPCODE_PONG = 0xA
};

/* RFC 6455 7.4.1 and the IANA registry. 1005 and 1006 are reported, never sent. */
enum urs_close_code {
    URS_CLOSE_NORMAL = 1000,
    URS_CLOSE_GOING_AWAY = 1001,
    URS_CLOSE_PROTOCOL_ERROR = 1002,
    URS_CLOSE_UNSUPPORTED_DATA = 1003,
    URS_CLOSE_NO_STATUS = 1005,
    URS_CLOSE_ABNORMAL = 1006,
    URS_CLOSE_INVALID_PAYLOAD = 1007,
    URS_CLOSE_POLICY_VIOLATION = 1008,
    URS_CLOSE_MESSAGE_TOO_BIG = 1009,
    URS_CLOSE_MANDATORY_EXTENSION = 1010,
    URS_CLOSE_INTERNAL_ERROR = 1011,
    URS_CLOSE_SERVICE_RESTART = 1012,
    URS_CLOSE_TRY_AGAIN_LATER = 1013,
    URS_CLOSE_BAD_GATEWAY = 1014
};

/* cdef: end */

#define URS_LIKELY(x) __builtin_expect(!!(x), 1)
#define URS_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define URS_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* States a condition that must always hold at this point, for any input of a peer and any call of Python. Builds that
 * look for faults (sanitizers, fault injection, fuzzing) define URS_ASSERTIONS and abort if the condition is false.
 * Other builds do not evaluate it. */
#ifdef URS_ASSERTIONS
#undef NDEBUG
#include <assert.h>
#define URS_ASSERT(condition) assert(condition)
#else
#define URS_ASSERT(condition) ((void)sizeof(condition))
#endif

static inline size_t urs_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t urs_max(size_t a, size_t b) { return a > b ? a : b; }

#endif
