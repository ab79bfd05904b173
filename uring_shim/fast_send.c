/* The send functions for Python's C API: fast_send.h says what they do and why they exist. */
#include <Python.h>

#include "fast_send.h"

#include "command.h"
#include "core.h"
#include "publish.h"

/* For a larger payload, releasing the GIL costs little in comparison: it is copied, or sent by a system call. */
enum { GIL_KEPT_BYTES_MAX = 16384 };

struct target {
    struct urs_reactor *reactor;
    uint64_t id;
    uint32_t index;
    uint8_t opcode;
};

/* Reads the first four arguments. Returns false with a Python exception set. */
static bool read_target(PyObject *const *arguments, struct target *target)
{
    target->reactor = PyLong_AsVoidPtr(arguments[0]);
    target->id = PyLong_AsUnsignedLongLong(arguments[1]);
    target->index = (uint32_t)PyLong_AsUnsignedLong(arguments[2]);
    target->opcode = (uint8_t)PyLong_AsUnsignedLong(arguments[3]);
    return PyErr_Occurred() == NULL;
}

static PyObject *check_count(Py_ssize_t given, Py_ssize_t wanted)
{
    return PyErr_Format(PyExc_TypeError, "%zd arguments are needed, not %zd", wanted, given);
}

static PyObject *fast_send(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct target to;
    char *payload;
    Py_ssize_t bytes;
    int result;
    (void)self;
    if (count != 5)
        return check_count(count, 5);
    if (!read_target(arguments, &to) || PyBytes_AsStringAndSize(arguments[4], &payload, &bytes) != 0)
        return NULL;
    if (bytes <= GIL_KEPT_BYTES_MAX) {
        result = urs_command_send(to.reactor, to.id, to.index, to.opcode, (const uint8_t *)payload, (size_t)bytes);
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = urs_command_send(to.reactor, to.id, to.index, to.opcode, (const uint8_t *)payload, (size_t)bytes);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromLong(result);
}

static PyObject *fast_send_event(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct target to;
    int result;
    (void)self;
    if (count != 4)
        return check_count(count, 4);
    if (!read_target(arguments, &to))
        return NULL;
    /* In another thread this may read old values. They only decide about the GIL: the call below refuses the thread. */
    bool large = to.reactor != NULL && to.index < to.reactor->event_count
        && to.reactor->events[to.index].item.bytes > GIL_KEPT_BYTES_MAX;
    if (!large) {
        result = urs_command_send_event(to.reactor, to.id, to.index, to.opcode);
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = urs_command_send_event(to.reactor, to.id, to.index, to.opcode);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromLong(result);
}

/* Publishes, and keeps the GIL for a small payload. Returns a Python int. */
static PyObject *publish(const struct target *to, const uint8_t *payload, size_t bytes, uint64_t skip)
{
    int64_t result;
    if (bytes <= GIL_KEPT_BYTES_MAX) {
        result = urs_publish(to->reactor, to->id, to->index, to->opcode, payload, bytes, skip);
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = urs_publish(to->reactor, to->id, to->index, to->opcode, payload, bytes, skip);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromLongLong(result);
}

static PyObject *fast_publish(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct target to;
    char *payload;
    Py_ssize_t bytes;
    (void)self;
    if (count != 6)
        return check_count(count, 6);
    if (!read_target(arguments, &to) || PyBytes_AsStringAndSize(arguments[4], &payload, &bytes) != 0)
        return NULL;
    uint64_t skip = PyLong_AsUnsignedLongLong(arguments[5]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    return publish(&to, (const uint8_t *)payload, (size_t)bytes, skip);
}

static PyObject *fast_publish_event(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct target to;
    (void)self;
    if (count != 5)
        return check_count(count, 5);
    if (!read_target(arguments, &to))
        return NULL;
    uint64_t skip = PyLong_AsUnsignedLongLong(arguments[4]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    const struct urs_item *item = urs_command_item(to.reactor, to.index, &to.opcode);
    if (item == NULL)
        return PyLong_FromLong(URS_ERROR_STATE);
    return publish(&to, item->payload, item->bytes, skip);
}

static PyObject *fast_copy(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)self;
    if (count != 2)
        return check_count(count, 2);
    const struct urs_reactor *reactor = PyLong_AsVoidPtr(arguments[0]);
    unsigned long index = PyLong_AsUnsignedLong(arguments[1]);
    if (PyErr_Occurred() != NULL)
        return NULL;
    /* The block of an echo that was applied is gone. */
    if (reactor == NULL || index >= reactor->event_count
        || (reactor->offsets[index] == UINT32_MAX && reactor->events[index].item.block == NULL))
        return PyErr_Format(PyExc_IndexError, "the payload of event %lu cannot be read", index);
    const struct urs_item *item = &reactor->events[index].item;
    if (item->opcode == URS_OPCODE_CONTINUATION || !item->fin)
        Py_RETURN_NONE;
    if (item->opcode == URS_OPCODE_TEXT)
        return PyUnicode_DecodeUTF8((const char *)item->payload, (Py_ssize_t)item->bytes, NULL);
    return PyBytes_FromStringAndSize((const char *)item->payload, (Py_ssize_t)item->bytes);
}

static PyMethodDef functions[] = {
    {"fast_send", (PyCFunction)(void (*)(void))fast_send, METH_FASTCALL, "See fast_send.h."},
    {"fast_send_event", (PyCFunction)(void (*)(void))fast_send_event, METH_FASTCALL, "See fast_send.h."},
    {"fast_publish", (PyCFunction)(void (*)(void))fast_publish, METH_FASTCALL, "See fast_send.h."},
    {"fast_publish_event", (PyCFunction)(void (*)(void))fast_publish_event, METH_FASTCALL, "See fast_send.h."},
    {"fast_copy", (PyCFunction)(void (*)(void))fast_copy, METH_FASTCALL, "See fast_send.h."},
    {NULL, NULL, 0, NULL},
};

int urs_fast_send_attach(void)
{
    PyGILState_STATE state = PyGILState_Ensure(); /* cffi has released it */
    PyObject *module = PyImport_AddModule("uringws._shim");
    int result = module == NULL ? -1 : PyModule_AddFunctions(module, functions);
    PyErr_Clear();
    PyGILState_Release(state);
    return result;
}
