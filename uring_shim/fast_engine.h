/* The engine of one connection for Python: a whole chunk of input per call, and one call per frame to send. These calls
 * are written for the C API of Python and not for cffi, because they make the Python objects of the payloads. Only
 * fast_engine.c and fast_send.c include Python.h. */
#ifndef URS_FAST_ENGINE_H
#define URS_FAST_ENGINE_H

#include "engine.h"
#include "outbound.h"

/* cdef: begin */

enum urs_feed_limit { URS_FEED_EVENTS_MAX = 1024 }; /* per call of feed */

/* All that a ServerEngine keeps. Zero-initialise it and set the rules; urs_server_engine_clear frees what it holds. */
struct urs_server_engine {
    struct urs_engine engine;
    struct urs_engine_rules rules;
    struct urs_memory memory;
    struct urs_outbox outbox;            /* the output of the callback form */
    struct urs_outbound outbound;
    uint8_t *held;                       /* input that feed has not looked at yet, from malloc; NULL for none */
    size_t held_bytes;
    bool busy;                           /* a call of feed is running */
    bool bytes_only;                     /* feed gives text messages as bytes, not as str */
    bool close_sent;                     /* a close frame was made: no frame may follow it */
};

/* Frees everything that the engine holds. Further input is ignored. */
void urs_server_engine_clear(struct urs_server_engine *core);

/* Adds three functions to the module uringws._shim, which must have been imported:
 *
 *   feed(engine, address, data, events_max) -> (opcodes, payloads, fins, reply, held)
 *     Takes in `data` (any buffer of bytes; a writable one is changed) for the struct urs_server_engine at `address`
 *     and stops after `events_max` events (1 to URS_FEED_EVENTS_MAX). `opcodes` and `fins` are bytes with one entry per
 *     event, `payloads` is a list with one bytes or str per event. `reply` holds the frames that must be sent: pongs,
 *     and the close frame that ends the connection. `held` is the number of bytes that wait for the next call, which
 *     takes them before its own data. A close frame and a violation both give a last event with the opcode CLOSE and
 *     the reason as payload; before feed returns it calls engine._ended(close_code, reason, failed).
 *   frame(opcode, fin, payload) -> bytes
 *     Returns a frame for a payload of bytes, str or any buffer of bytes.
 *
 *   message(address, opcode, payload) -> bytes
 *     Returns a whole message as one frame, compressed if the engine at `address` agreed on that and the payload (any
 *     buffer of bytes) is large enough.
 *
 * All keep the GIL. Returns 0, or -1 if Python is out of memory. */
int urs_fast_engine_attach(void);

/* cdef: end */

#endif
