"""uringws, the echo in C: no Python runs per message."""

from uringws import Handler
from uringws_reactor import arguments, reactor

if __name__ == "__main__":
    with reactor(Handler(), arguments(__doc__)) as echo:
        echo.run_echo()
