"""A real nginx with its default settings, in front of servers on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextlib.contextmanager
def running_nginx(directory: Path, *locations: str) -> Iterator[list[int]]:
    """Runs nginx; yields a port for each location.

    The settings are a distribution's defaults, apart from the places of files.

    Args:
        directory: Where nginx may write: its settings, log and temporary files.
        locations: The directives of each server's only location, such as `proxy_pass http://127.0.0.1:8000;`.
    """
    assert NGINX is not None
    with contextlib.ExitStack() as stack:
        # nginx is given the sockets, as at an upgrade: a client that connects before nginx is up waits, and no more.
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in locations]
        ports = [listening.getsockname()[1] for listening in sockets]
        servers = (
            f"server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}"
            for port, location in zip(ports, locations, strict=True)
        )
        settings = directory / "nginx.conf"
        settings.write_text(f"""
            daemon off; user root; pid {directory}/pid; error_log {directory}/log;
            events {{}}
            http {{
                access_log off;
                {" ".join(f"{kind}_temp_path {directory}/{kind};" for kind in _TEMPORARY)}
                {" ".join(servers)}
            }}
        """)
        descriptors = [listening.fileno() for listening in sockets]
        process = subprocess.Popen(
            [NGINX, "-p", directory, "-c", settings, "-e", directory / "log"],
            env={**os.environ, "NGINX": "".join(f"{descriptor};" for descriptor in descriptors)},
            pass_fds=descriptors,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield ports
        finally:
            process.terminate()
            process.wait()
