"""A cache for Bazel: nginx with WebDAV on the loopback, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CacheServerError", "cache_server"]

# Paths are relative to the folder that nginx is started with. Bazel writes with PUT to
# /cas/DIGEST and /ac/DIGEST, and reads with GET.
_CONFIGURATION = """\
daemon off;
pid nginx.pid;
error_log stderr crit;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path temporary;
    fastcgi_temp_path temporary;
    proxy_temp_path temporary;
    scgi_temp_path temporary;
    uwsgi_temp_path temporary;
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port};
        root content;
        location / {{
            dav_methods PUT;
            create_full_put_path on;
        }}
    }}
}}
"""

_START_SECONDS = 10


class CacheServerError(Exception):
    """nginx cannot be had or does not start."""


@contextmanager
def cache_server(folder: Path) -> Iterator[str]:
    """Yields the address of a running cache, and stops it.

    Args:
      folder: a new folder for nginx and what it keeps.

    Raises:
      CacheServerError: there is no nginx, or it does not start.
    """
    (folder / "content").mkdir(parents=True)
    (folder / "temporary").mkdir()
    program = _nginx(folder)
    port = _free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(port=port), encoding="utf-8")
    # nginx serves as another user where it is started by root.
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    server = subprocess.Popen(
        [program, "-e", "stderr", "-p", folder, "-c", configuration, *user],
        stderr=(folder / "log").open("wb"),
    )
    try:
        _wait_until_open(server, port, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _nginx(folder: Path) -> str:
    """Returns the machine's nginx, or that of Debian's package, unpacked and not installed."""
    installed = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if installed:
        return installed
    _run(["apt-get", "download", "nginx"], folder)
    packages = list(folder.glob("*.deb"))
    if len(packages) != 1:
        raise CacheServerError(f"'apt-get download nginx' left {packages}, not one package")
    _run(["dpkg-deb", "--extract", str(packages[0]), "unpacked"], folder)
    return str(folder / "unpacked/usr/sbin/nginx")


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CacheServerError(
            f"there is no nginx on this machine, and '{' '.join(command)}' fails: "
            f"{getattr(error, 'stderr', None) or error}\n"
            "on Debian: apt-get update && apt-get install nginx"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_open(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise CacheServerError(f"nginx does not start:\n{log.read_text(errors='replace')}")
