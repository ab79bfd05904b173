"""nchan, one worker of nginx that publishes: the configuration is made here. Debian: libnginx-mod-nchan."""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import MESSAGE_BYTES_MAX, parse, parser
from native import BUILD
from roles import CHAT, MEMBER, PUBLISHER

MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"))

CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr crit;
worker_rlimit_nofile 65536;
load_module {module};
events {{ worker_connections 32768; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size {bytes_max};
    nchan_message_buffer_length 128;
    server {{
        listen {host}:{port} backlog=1024;
        location = {publisher} {{ nchan_publisher websocket; nchan_channel_id member; }}
        location = {member} {{ nchan_subscriber websocket; nchan_subscriber_first_message newest;
                               nchan_channel_id member; }}
        location = {chat} {{ nchan_pubsub websocket; nchan_subscriber_first_message newest; nchan_channel_id chat; }}
    }}
}}
"""


def module() -> Path:
    for directory in MODULES:
        if (directory / "ngx_nchan_module.so").exists():
            return directory / "ngx_nchan_module.so"
    sys.exit("nchan is not installed: apt install libnginx-mod-nchan")


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        sys.exit("nginx is not installed")
    directory = BUILD / f"nchan-{arguments.port}"
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            directory=directory,
            module=module(),
            bytes_max=MESSAGE_BYTES_MAX,
            host=arguments.host,
            port=arguments.port,
            member=MEMBER,
            publisher=PUBLISHER,
            chat=CHAT,
        )
    )
    print(f"listening {arguments.port}", flush=True)
    os.execv(nginx, [nginx, "-p", str(directory), "-c", str(configuration)])  # noqa: S606 (there is no shell to go through)
