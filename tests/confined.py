"""Run a Python program as the places that refuse io_uring would run it.

    python confined.py [--refuse EPERM|ENOSYS] [--memlock BYTES] -- (-m MODULE | SCRIPT) [ARGUMENT...]

``--refuse`` makes ``io_uring_setup`` fail with that error by a seccomp filter: EPERM is the answer of Docker's default
profile, ENOSYS that of sandboxes with a system call table of their own. ``--memlock`` sets RLIMIT_MEMLOCK and, from
root, becomes the user ``nobody``, because CAP_IPC_LOCK lifts that limit. The program is compiled and its modules are
imported before that: ``nobody`` may be unable to read their files.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib.util
import os
import resource
import struct
import sys
from pathlib import Path
from types import CodeType

NOBODY = 65534
LAZILY_IMPORTED = ("email.parser", "json")  # by importlib.metadata, and by the tests' scripts

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # <linux/prctl.h>, <linux/seccomp.h>
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
BPF_LD_W_ABS, BPF_JEQ_K, BPF_RET_K = 0x20, 0x15, 0x06  # <linux/bpf_common.h>
NR_IO_URING_SETUP = 425  # the same number on every architecture


class SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse_io_uring(error: int) -> None:
    """Make ``io_uring_setup`` fail with ``error`` in this process and its children, permanently (seccomp(2))."""
    instructions = [
        (BPF_LD_W_ABS, 0, 0, 0),  # load seccomp_data.nr
        (BPF_JEQ_K, 0, 1, NR_IO_URING_SETUP),  # the next instruction if equal, else the one after
        (BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | error),
        (BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
    ]
    program = SockFprog(len(instructions), b"".join(struct.pack("HBBI", *each) for each in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    prctl(libc, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


def prctl(libc: ctypes.CDLL, option: int, *arguments: object) -> None:
    padded = [*arguments, *(ctypes.c_ulong(0) for _ in range(4 - len(arguments)))]
    if libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def limit_memlock(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def load(program: list[str]) -> tuple[CodeType, list[str]]:
    """The code of ``-m MODULE`` or ``SCRIPT``, and the ``sys.argv`` it expects."""
    if program[0] != "-m":
        return compile(Path(program[0]).read_bytes(), program[0], "exec"), program
    name = program[1]
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec is not None, name
    assert spec.origin is not None, name
    importlib.import_module(spec.name)  # and with it all that it imports
    return compile(Path(spec.origin).read_bytes(), spec.origin, "exec"), [spec.origin, *program[2:]]


def main() -> None:
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--refuse", choices=["EPERM", "ENOSYS"])
    parser.add_argument("--memlock", type=int)
    arguments = parser.parse_args(sys.argv[1:split])

    for name in ("uringws", *LAZILY_IMPORTED):
        importlib.import_module(name)

    code, sys.argv[:] = load(sys.argv[split + 1 :])
    if arguments.memlock is not None:
        limit_memlock(arguments.memlock)
    if arguments.refuse is not None:
        refuse_io_uring(getattr(errno, arguments.refuse))
    exec(code, {"__name__": "__main__", "__file__": sys.argv[0], "__builtins__": __builtins__})


if __name__ == "__main__":
    main()
