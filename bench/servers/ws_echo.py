"""npm's ws on node, without compression (ws_echo.mjs). It has to be installed: npm install --prefix bench/servers."""

import os
import shutil
import sys
from pathlib import Path

from command_line import MESSAGE_BYTES_MAX, parse, parser

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    node = shutil.which("node")
    if node is None:
        sys.exit("node is not installed")
    if not (HERE / "node_modules" / "ws").is_dir():
        sys.exit("ws is not installed: npm install --prefix bench/servers")
    script = str(HERE / "ws_echo.mjs")
    command = [node, script, arguments.host, str(arguments.port), str(MESSAGE_BYTES_MAX)]
    os.execv(node, command)  # noqa: S606 (there is no shell to go through)
