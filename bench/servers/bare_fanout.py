"""A loop of sends in C on io_uring (bare_fanout.c): no protocol, for the load generator's --protocol tcp."""

import os
import sys
from pathlib import Path

from command_line import parse, parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from native import BuildError, build

if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    try:
        program = build("bare_fanout")
    except BuildError as error:
        sys.exit(str(error))
    command = [program.name, arguments.host, str(arguments.port)]
    os.execv(program, command)  # noqa: S606 (there is no shell to go through)
