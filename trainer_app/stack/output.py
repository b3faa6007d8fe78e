"""What the processes of the stack say: on the terminal with a prefix, and in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Final, TextIO

from honcho.colour import get_colours
from honcho.printer import Message, Printer

OWN_NAME: Final = "trainer"  # of the supervisor's own lines
_MAX_LOG_BYTES: Final = 16 * 1024 * 1024  # of one file; one older file is kept beside it


class Output:
    """Prints whole lines from several threads, and appends each to its process's log file."""

    def __init__(self, stream: TextIO, logs: Path, names: Sequence[str]) -> None:
        self._lock = Lock()
        self._stream: TextIO | None = stream
        self._printer = Printer(output=stream, width=max(map(len, [OWN_NAME, *names])))
        self._colours = dict(zip([*names, OWN_NAME], get_colours(), strict=False))
        self._logs = logs

    def line(self, name: str, data: bytes) -> None:
        """One line of a process, with or without its newline."""
        now = datetime.now().astimezone()
        text = data.decode("utf-8", "replace").rstrip()
        message = Message("line", text, now, name, self._colours.get(name))
        with self._lock:
            # A full disk must not stop a process whose lines nobody takes any more.
            with suppress(OSError):
                self._append(name, f"{now.isoformat(timespec='milliseconds')} {text}\n")
            self._print(message)

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        self.line(OWN_NAME, text.encode())

    def plain(self, text: str) -> None:
        """A line without prefix, for a person or a script to find."""
        with self._lock:
            if self._stream is not None:
                with self._reader_may_be_gone():
                    self._stream.write(f"{text}\n")
                    self._stream.flush()

    def _print(self, message: Message) -> None:
        if self._stream is not None:
            with self._reader_may_be_gone():
                self._printer.write(message)

    @contextmanager
    def _reader_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            # The terminal or the reader of the pipe is gone: the stack and its logs go on.
            self._stream = None

    def _append(self, name: str, text: str) -> None:
        if not self._logs.exists():  # somebody may remove run/, and no more: a disk may be away
            self._logs.parent.mkdir(mode=0o700, exist_ok=True)
            self._logs.mkdir()
        path = self._logs / f"{name}.log"
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
