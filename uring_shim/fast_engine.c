/* The engine for Python's C API: fast_engine.h says what the functions do and why they exist. */
#include <Python.h>

#include "fast_engine.h"

#include <stdlib.h>
#include <string.h>

#include "frame.h"

enum { STACK_BYTES = 4096, CACHED_BYTES_MAX = 128 * 1024, REPLY_BYTES_MIN = 256 };

/* The input of one call: `data` of the caller, or a copy of it that the engine may unmask. */
struct chunk {
    struct urs_input input;
    uint8_t *copy;                       /* from malloc; NULL if the bytes lie elsewhere */
    uint8_t stack[STACK_BYTES];
};

/* The events of one call. */
struct events {
    PyObject *payloads;
    Py_ssize_t count;
    uint8_t *reply;                      /* from malloc */
    size_t reply_bytes;
    size_t reply_room;
    int end;                             /* URS_ITEM_CLOSE or URS_ITEM_FAILED if the connection ended; 0 if not */
    unsigned close_code;
    uint8_t opcodes[URS_FEED_EVENTS_MAX];
    uint8_t fins[URS_FEED_EVENTS_MAX];
};

void urs_server_engine_clear(struct urs_server_engine *core)
{
    urs_outbound_clear(&core->outbox, &core->outbound);
    urs_outbox_clear(&core->outbox);
    urs_engine_clear(&core->engine);
    urs_memory_clear(&core->memory);
    free(core->held);
    core->held = NULL;
    core->held_bytes = 0;
}

/* ---- input ------------------------------------------------------------------------------------------------- */

/* Joins the held input and `data` into one run of bytes that the engine may write to. Returns false without memory. */
static bool open_chunk(struct urs_server_engine *core, const Py_buffer *data, struct chunk *chunk)
{
    size_t bytes = (size_t)data->len;
    uint8_t *start = chunk->stack;
    chunk->copy = NULL;
    if (core->held != NULL) {
        chunk->copy = start = realloc(core->held, core->held_bytes + bytes);
        if (start == NULL)
            return false;
        memcpy(start + core->held_bytes, data->buf, bytes);
        bytes += core->held_bytes;
        core->held = NULL;
        core->held_bytes = 0;
    } else if (!data->readonly) {
        start = data->buf;
    } else {
        if (bytes > sizeof chunk->stack)
            chunk->copy = start = malloc(bytes);
        if (start == NULL)
            return false;
        memcpy(start, data->buf, bytes);
    }
    chunk->input = (struct urs_input){.next = start, .end = start + bytes};
    return true;
}

/* Keeps the bytes that were not looked at for the next call, and frees the rest. Returns false without memory. */
static bool close_chunk(struct urs_server_engine *core, struct chunk *chunk)
{
    size_t bytes = (size_t)(chunk->input.end - chunk->input.next);
    URS_ASSERT(core->held == NULL);
    if (bytes > 0) {
        core->held = malloc(bytes);
        if (core->held != NULL) {
            memcpy(core->held, chunk->input.next, bytes);
            core->held_bytes = bytes;
        }
    }
    free(chunk->copy);
    return bytes == 0 || core->held != NULL;
}

/* ---- events ------------------------------------------------------------------------------------------------ */

/* Appends a frame to the reply. Returns false without memory. */
static bool reply_frame(struct events *events, uint8_t opcode, const uint8_t *payload, size_t bytes)
{
    size_t needed = events->reply_bytes + URS_FRAME_ANSWER_BYTES_MAX + bytes;
    URS_ASSERT(bytes <= URS_FRAME_CONTROL_BYTES_MAX);
    if (events->reply_room < needed) {
        size_t room = urs_max(2 * needed, REPLY_BYTES_MIN);
        uint8_t *reply = realloc(events->reply, room);
        if (reply == NULL)
            return false;
        events->reply = reply;
        events->reply_room = room;
    }
    uint8_t *target = events->reply + events->reply_bytes;
    size_t header_bytes = urs_frame_write(target, opcode, true, bytes);
    if (bytes > 0)
        memcpy(target + header_bytes, payload, bytes);
    events->reply_bytes += header_bytes + bytes;
    return true;
}

/* Appends the close frame that an item requires: the peer's code, or the code and text of its violation. */
static bool reply_close(struct events *events, const struct urs_item *item)
{
    uint8_t payload[URS_FRAME_CONTROL_BYTES_MAX] = {(uint8_t)(item->close_code >> 8), (uint8_t)item->close_code};
    size_t bytes = item->close_code == URS_CLOSE_NO_STATUS ? 0 : 2;
    if (item->kind == URS_ITEM_FAILED) {
        const char *text = urs_engine_error_text(item->error);
        size_t text_bytes = urs_min(strlen(text), URS_CLOSE_REASON_BYTES_MAX);
        memcpy(payload + bytes, text, text_bytes);
        bytes += text_bytes;
    }
    return reply_frame(events, URS_OPCODE_CLOSE, payload, bytes);
}

/* Adds what must be sent for an item. After our close frame nothing may be sent, RFC 6455 5.5.1. */
static bool reply_to(struct urs_server_engine *core, struct events *events, const struct urs_item *item)
{
    if (item->kind == URS_ITEM_PING)
        return core->close_sent || reply_frame(events, URS_OPCODE_PONG, item->payload, item->bytes);
    if (item->kind != URS_ITEM_CLOSE && item->kind != URS_ITEM_FAILED)
        return true;
    events->end = item->kind;
    events->close_code = item->close_code;
    bool sent = core->close_sent;
    core->close_sent = true;
    return sent || reply_close(events, item);
}

static PyObject *payload_of(const struct urs_server_engine *core, const struct urs_item *item)
{
    const char *data = (const char *)item->payload;
    Py_ssize_t bytes = (Py_ssize_t)item->bytes;
    bool text = item->kind == URS_ITEM_MESSAGE && item->opcode == URS_OPCODE_TEXT && !core->bytes_only;
    if (item->kind == URS_ITEM_FAILED)
        return PyUnicode_FromString(urs_engine_error_text(item->error));
    if (bytes == 0)
        data = "";
    return text || item->kind == URS_ITEM_CLOSE ? PyUnicode_DecodeUTF8(data, bytes, NULL)
                                                : PyBytes_FromStringAndSize(data, bytes);
}

/* Records an item and drops its block. Returns false with a Python exception set. */
static bool add_event(struct urs_server_engine *core, struct events *events, struct urs_item *item)
{
    PyObject *payload = payload_of(core, item);
    bool replied = payload != NULL && reply_to(core, events, item);
    bool ended = item->kind == URS_ITEM_CLOSE || item->kind == URS_ITEM_FAILED;
    urs_block_drop(item->block);
    item->block = NULL;
    if (payload != NULL && !replied)
        PyErr_NoMemory();
    if (!replied || PyList_Append(events->payloads, payload) != 0) {
        Py_XDECREF(payload);
        return false;
    }
    Py_DECREF(payload);
    events->opcodes[events->count] = ended ? URS_OPCODE_CLOSE : item->opcode;
    events->fins[events->count++] = ended || item->fin;
    return true;
}

/* Takes items from the input. Returns false with a Python exception set. */
static bool take_events(struct urs_server_engine *core, struct urs_input *input, struct events *events, long events_max)
{
    struct urs_item item = {0};
    while (events->count < events_max
           && urs_engine_next(&core->engine, &core->rules, &core->memory, input, &item) != URS_ITEM_NONE)
        if (!add_event(core, events, &item))
            return false;
    return true;
}

static PyObject *make_columns(const struct urs_server_engine *core, struct events *events)
{
    PyObject *opcodes = PyBytes_FromStringAndSize((const char *)events->opcodes, events->count);
    PyObject *fins = PyBytes_FromStringAndSize((const char *)events->fins, events->count);
    PyObject *reply = PyBytes_FromStringAndSize((const char *)events->reply, (Py_ssize_t)events->reply_bytes);
    PyObject *held = PyLong_FromSize_t(core->held_bytes);
    PyObject *columns = NULL;
    if (opcodes != NULL && fins != NULL && reply != NULL && held != NULL)
        columns = PyTuple_Pack(5, opcodes, events->payloads, fins, reply, held);
    Py_XDECREF(opcodes);
    Py_XDECREF(fins);
    Py_XDECREF(reply);
    Py_XDECREF(held);
    return columns;
}

/* ---- calls from Python ------------------------------------------------------------------------------------- */

/* Tells the ServerEngine that the peer closed the connection or broke a rule. Returns false with an exception set. */
static bool tell_end(PyObject *engine, const struct events *events)
{
    PyObject *reason = PyList_GetItem(events->payloads, events->count - 1);
    PyObject *failed = events->end == URS_ITEM_FAILED ? Py_True : Py_False;
    PyObject *result = PyObject_CallMethod(engine, "_ended", "IOO", events->close_code, reason, failed);
    Py_XDECREF(result);
    return result != NULL;
}

/* Feeds one chunk and returns the columns, or NULL with an exception set. After an exception the engine has ended: part
 * of its input is lost. */
static PyObject *feed_chunk(PyObject *engine, struct urs_server_engine *core, const Py_buffer *data, long events_max)
{
    struct chunk chunk;
    struct events events;
    PyObject *columns = NULL;
    events.payloads = PyList_New(0);
    events.count = 0;
    events.reply = NULL;
    events.reply_bytes = events.reply_room = 0;
    events.end = 0;
    bool taken = false;
    if (events.payloads != NULL && !open_chunk(core, data, &chunk)) {
        PyErr_NoMemory();
    } else if (events.payloads != NULL) {
        taken = take_events(core, &chunk.input, &events, events_max);
        if (!close_chunk(core, &chunk) && taken) {
            PyErr_NoMemory();
            taken = false;
        }
    }
    if (core->memory.cached_bytes > CACHED_BYTES_MAX)
        urs_memory_clear(&core->memory);
    if (taken && (events.end == 0 || tell_end(engine, &events)))
        columns = make_columns(core, &events);
    if (columns == NULL)
        urs_engine_clear(&core->engine);
    Py_XDECREF(events.payloads);
    free(events.reply);
    return columns;
}

static PyObject *feed(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer data;
    (void)self;
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "4 arguments are needed, not %zd", count);
    struct urs_server_engine *core = PyLong_AsVoidPtr(arguments[1]);
    long events_max = PyLong_AsLong(arguments[3]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    if (events_max < 1 || events_max > URS_FEED_EVENTS_MAX)
        return PyErr_Format(PyExc_ValueError, "events_max must be from 1 to %d, not %ld", URS_FEED_EVENTS_MAX,
                            events_max);
    if (core == NULL || core->busy)
        return PyErr_Format(PyExc_RuntimeError, "no data can be given to an engine while it is taking some in");
    if (PyObject_GetBuffer(arguments[2], &data, PyBUF_SIMPLE) != 0)
        return NULL;
    core->busy = true;  /* an allocation may run a destructor of Python's, and that may come here again */
    PyObject *columns = feed_chunk(arguments[0], core, &data, events_max);
    core->busy = false;
    PyBuffer_Release(&data);
    return columns;
}

/* Writes a frame of `bytes` bytes of payload. */
static PyObject *make_frame(uint8_t opcode, bool fin, const void *payload, Py_ssize_t bytes)
{
    size_t header_bytes = urs_frame_answer_bytes((uint64_t)bytes);
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)header_bytes + bytes);
    if (frame == NULL)
        return NULL;
    uint8_t *target = (uint8_t *)PyBytes_AsString(frame);
    urs_frame_write(target, opcode, fin, (uint64_t)bytes);
    if (bytes > 0)
        memcpy(target + header_bytes, payload, (size_t)bytes);
    return frame;
}

static PyObject *frame(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer buffer;
    (void)self;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "3 arguments are needed, not %zd", count);
    unsigned long opcode = PyLong_AsUnsignedLong(arguments[0]);
    int fin = PyObject_IsTrue(arguments[1]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    if (opcode > URS_OPCODE_PONG)
        return PyErr_Format(PyExc_ValueError, "%lu is not an opcode", opcode);
    if (PyUnicode_Check(arguments[2])) {
        Py_ssize_t bytes;
        const char *text = PyUnicode_AsUTF8AndSize(arguments[2], &bytes);
        return text == NULL ? NULL : make_frame((uint8_t)opcode, fin, text, bytes);
    }
    if (PyObject_GetBuffer(arguments[2], &buffer, PyBUF_SIMPLE) != 0)
        return NULL;
    PyObject *made = make_frame((uint8_t)opcode, fin, buffer.buf, buffer.len);
    PyBuffer_Release(&buffer);
    return made;
}

/* Makes a frame of a compressed message. Returns NULL without an exception if it must be sent uncompressed, or with
 * one. */
static PyObject *make_compressed(struct urs_server_engine *core, uint8_t opcode, const void *payload, size_t bytes)
{
    uint8_t *target = malloc(urs_deflate_room(bytes));
    if (target == NULL)
        return PyErr_NoMemory();
    size_t written = urs_deflate_compress(&core->engine.deflate, core->engine.deflate_terms, &core->rules.deflate,
                                          &core->memory, payload, bytes, target);
    PyObject *made = NULL;
    if (written > 0)
        made = make_frame(opcode | URS_FRAME_RSV1, true, target, (Py_ssize_t)written);
    if (written > 0 && made == NULL)
        urs_deflate_forget(core->engine.deflate);
    free(target);
    return made;
}

static PyObject *message(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer buffer;
    (void)self;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "3 arguments are needed, not %zd", count);
    struct urs_server_engine *core = PyLong_AsVoidPtr(arguments[0]);
    unsigned long opcode = PyLong_AsUnsignedLong(arguments[1]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    if (core == NULL || (opcode != URS_OPCODE_TEXT && opcode != URS_OPCODE_BINARY))
        return PyErr_Format(PyExc_ValueError, "%lu is not the opcode of a message", opcode);
    if (PyObject_GetBuffer(arguments[2], &buffer, PyBUF_SIMPLE) != 0)
        return NULL;
    PyObject *made = NULL;
    if (urs_engine_compresses(&core->engine, &core->rules, (size_t)buffer.len))
        made = make_compressed(core, (uint8_t)opcode, buffer.buf, (size_t)buffer.len);
    if (made == NULL && PyErr_Occurred() == NULL)
        made = make_frame((uint8_t)opcode, true, buffer.buf, buffer.len);
    PyBuffer_Release(&buffer);
    return made;
}

static PyMethodDef functions[] = {
    {"feed", (PyCFunction)(void (*)(void))feed, METH_FASTCALL, "See fast_engine.h."},
    {"frame", (PyCFunction)(void (*)(void))frame, METH_FASTCALL, "See fast_engine.h."},
    {"message", (PyCFunction)(void (*)(void))message, METH_FASTCALL, "See fast_engine.h."},
    {NULL, NULL, 0, NULL},
};

int urs_fast_engine_attach(void)
{
    PyGILState_STATE state = PyGILState_Ensure(); /* cffi has released it */
    PyObject *module = PyImport_AddModule("uringws._shim");
    int result = module == NULL ? -1 : PyModule_AddFunctions(module, functions);
    PyErr_Clear();
    PyGILState_Release(state);
    return result;
}
