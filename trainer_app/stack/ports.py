"""Ports that nobody listens on."""

from __future__ import annotations

import errno
import socket


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; raises OSError for a host that is not ours."""
    return _bound(host, port) is not None


def free_port(host: str) -> int:
    """A port that the system has just given out for ``host``, hence free."""
    port = _bound(host, 0)
    assert port is not None
    return port


def local_url(host: str, port: int) -> str:
    """How a client on this machine reaches a server that listens on ``host``."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (read, not bound)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _bound(host: str, port: int) -> int | None:
    """The port that could be bound, or None when it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # What servers set themselves: connections that linger from the last server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        bound: int = probe.getsockname()[1]
        return bound
