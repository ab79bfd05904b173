/* The functions that send, publish and copy, written for the C API of Python, because they run for every message: a call through cffi
 * packs a tuple and releases the GIL, which costs more than sending a small message. Only fast_send.c and fast_engine.c
 * include Python.h. */
#ifndef URS_FAST_SEND_H
#define URS_FAST_SEND_H

/* cdef: begin */

/* Adds functions to the module uringws._shim, which must have been imported:
 *   fast_send(address, id, index, opcode, payload: bytes) -> int
 *   fast_send_event(address, id, index, opcode) -> int
 *   fast_publish(address, topic, index, opcode, payload: bytes, skip) -> int
 *   fast_publish_event(address, topic, index, opcode, skip) -> int
 * They do the same as urs_command_send, urs_command_send_event and urs_publish, and return the same results;
 * fast_publish_event publishes the payload of the event, as urs_command_send_event sends it. `address` is the
 * address of the reactor, 0 for none. They keep the GIL while they send a small payload.
 *   fast_copy(address, index) -> str | bytes | None
 * It returns a copy of the whole message of an event, None for a fragment, and raises IndexError if the event has no
 * payload that can be read. Returns 0, or -1 if Python is out of memory. */
int urs_fast_send_attach(void);

/* cdef: end */

#endif
