"""A server in C on io_uring without any protocol, for the load generator's --protocol tcp: a bound for the others."""

import os
import sys
from pathlib import Path

from command_line import parse, parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from native import BuildError, build

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--program", choices=("bare_uring", "bare_fanout"), required=True, help="an echo, or fan-out")
    arguments = parse(options)
    try:
        program = build(arguments.program)
    except BuildError as error:
        sys.exit(str(error))
    command = [program.name, arguments.host, str(arguments.port)]
    os.execv(program, command)  # noqa: S606 (there is no shell to go through)
