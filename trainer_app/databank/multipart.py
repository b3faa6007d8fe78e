"""One file as a multipart/form-data body (RFC 7578) whose length is known from the start."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from typing import Final

from trainer_app.errors import DataBankUnavailable

_FIELD: Final = "file"


class Multipart:
    """The form around a file of ``size`` bytes; the name holds nothing that would need quoting."""

    def __init__(self, name: str, size: int) -> None:
        boundary = secrets.token_hex(16)
        self._head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="{_FIELD}"; filename="{name}"\r\n'
            "Content-Type: application/gzip\r\n\r\n"
        ).encode()
        self._size = size
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._head) + size + len(self._tail)),
        }

    def body(self, content: Iterator[bytes]) -> Generator[bytes]:
        """The body, block by block; raises DataBankUnavailable for a file of another size."""
        yield self._head
        left = self._size
        for block in content:
            left -= len(block)
            if left < 0:
                break
            yield block
        if left:
            raise DataBankUnavailable("what is sent has changed since it was measured")
        yield self._tail
