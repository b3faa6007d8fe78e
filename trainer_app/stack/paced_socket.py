"""A bound for bodies that never end: a client may be slow, but not without limit."""

from __future__ import annotations

import socket
import time


class PacedSocket:
    """Receives a body, and gives up on one that falls too far behind.

    At any moment the client may be ``patience_seconds`` behind an average of
    ``bytes_per_second``. Only the time that is spent waiting for it counts: a server that takes
    its own time over a piece charges nobody.

    A client that waits to be asked for its body gets ``invitation`` when the body is first read.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        patience_seconds: float,
        bytes_per_second: float,
        invitation: bytes = b"",
    ) -> None:
        self._sock = sock
        self._invitation = invitation
        self._patience_seconds = patience_seconds
        self._bytes_per_second = bytes_per_second
        self._left = patience_seconds

    @property
    def is_waited_for(self) -> bool:
        """Whether the client still waits to be asked for its body."""
        return bool(self._invitation)

    def recv(self, size: int) -> bytes:
        """The next piece, of at most ``size`` bytes; raises TimeoutError once patience is over."""
        if self._invitation:
            self._sock.sendall(self._invitation)
            self._invitation = b""
        given = self._sock.gettimeout()
        began = time.monotonic()
        # 0 would mean not to wait at all, for which there is another error.
        self._sock.settimeout(max(self._left, 0.001))
        try:
            piece = self._sock.recv(size)
        finally:
            self._sock.settimeout(given)
            self._left -= time.monotonic() - began
        earned = len(piece) / self._bytes_per_second
        self._left = min(self._left + earned, self._patience_seconds)
        return piece
