"""A server as it is seen through a network that takes its time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_AT_ONCE = 1 << 16


class SlowProxy:
    """Passes on what comes to a port of this host; each piece takes ``delay`` seconds."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self.delay = 0.0
        self._cut = threading.Event()
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_off(self) -> None:
        """End all connections that there are; new ones are refused until ``join``."""
        self._cut.set()
        self._end(*self._ends)

    def join(self) -> None:
        """Let connections through again."""
        self._cut.clear()

    def close(self) -> None:
        """Cut all off for good."""
        self._end(self._listener, *self._ends)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                if self._cut.is_set():
                    client.close()
                    continue
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                self._ends += (client, server)
                if self._cut.is_set():  # since it was asked
                    self._end(client, server)
                    continue
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_AT_ONCE):
                time.sleep(self.delay)
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow_proxy(connect: Callable[[], socket.socket]) -> Iterator[SlowProxy]:
    """One before the server that ``connect`` reaches."""
    proxy = SlowProxy(connect)
    try:
        yield proxy
    finally:
        proxy.close()
