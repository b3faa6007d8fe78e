"""Logs: JSON lines on stderr for operators, and one JSON-lines file a job for its user."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import structlog

from trainer_app.safe_paths import open_beneath

if TYPE_CHECKING:
    from trainer_app.settings import Settings

_log = structlog.get_logger(__name__)

_TAIL_BYTES: Final = 16_384  # enough for a few lines
_EVENT_CHARACTERS: Final = 300
_TEXTS: Final = frozenset({"event", "exception"})  # of more than one line


class _Lines:
    """A structlog logger to a stream: one that takes no line costs the line, nothing else.

    As where stderr is a file on a full disk, or a pipe that nobody reads any more. Whoever logs
    would fail by it: a request that is done already, or the thread that keeps a lease.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError):
            # One call, which takes all of it: without a lock that a fork could find taken.
            self._stream.write(f"{line}\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


def configure(settings: Settings) -> None:
    """Send structlog and the standard library's loggers to stderr: JSON objects, or text."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    ]
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [
            _without_time,
            structlog.processors.format_exc_info,  # without the values of variables: some are keys
            _printable,
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
        ]
    )
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)  # drops what it cannot write
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _without_time(
    _logger: object, _method: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    # Whatever shows lines of text, a terminal or a journal, writes the time before them.
    entry.pop("ts", None)
    return entry


def _printable(
    _logger: object, _method: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    # Clients choose paths and names: none of them is to steer the terminal that shows the line.
    return {
        name: _escaped(value, kept="\n\t" if name in _TEXTS else "")
        if isinstance(value, str)
        else value
        for name, value in entry.items()
    }


def _escaped(text: str, *, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def job_log_path(settings: Settings, job_id: str) -> Path:
    """Where the log of a job lies."""
    return settings.paths.logs / f"{job_id}.jsonl"


def _plain(file: int) -> int:
    """An open file, unless it is something that others read from. Raises OSError."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.ENXIO, "not a plain file")
    return file


def _ends_within_a_line(file: int) -> bool:
    """Whether what is written next would be a part of the last line. Raises OSError."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


class JobLog:
    """The log of one job: appended by whoever holds its lease, followed by its readers.

    Each line reaches the kernel in one write, so a killed process leaves no torn line. A disk
    that takes no line costs the line, never the job: it is the row that tells what became of it.
    """

    def __init__(self, path: Path, **context: object) -> None:
        self._path = path
        self._file: int | None = None  # opened by the first line that can be written
        self._torn = False
        self._context = context

    def write(self, level: str, event: str, **values: object) -> None:
        """Append one line; a non-finite number in ``values`` becomes null."""
        entry = {"ts": _now(), "level": level, "event": event} | self._context | values
        line = json.dumps(_finite(entry), ensure_ascii=False, default=str)
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # No link to another file, and no waiting for who reads from a FIFO.
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                flags |= os.O_NOFOLLOW | os.O_NONBLOCK
                self._file = _plain(os.open(self._path, flags, 0o644))
                self._torn = _ends_within_a_line(self._file)  # as an attempt before has left it
            # A full disk may take a part: what follows is to be lines again.
            whole = b"\n" + data if self._torn else data
            self._torn = os.write(self._file, whole) < len(whole)
        except OSError as error:
            _log.warning("a line of a job's log is lost", event_lost=event, error=str(error))

    def info(self, event: str, **values: object) -> None:
        """Append a line that tells what happens."""
        self.write("info", event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Append a line that somebody may want to act on."""
        self.write("warning", event, **values)

    def error(self, event: str, **values: object) -> None:
        """Append a line that tells what failed."""
        self.write("error", event, **values)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


def last_events(path: Path, count: int) -> list[str]:
    """What the last lines of a job's log say, oldest first; empty where there is no log."""
    try:
        with open_beneath(path.parent, path.name) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    # str.splitlines would also split at U+2028, which may stand in a line.
    lines = text.removesuffix("\n").split("\n")[-count:]
    return [said for line in lines if (said := _said(line))]


def _said(line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # longer than what was read, or no line of ours
        return ""
    if not isinstance(entry, dict) or "event" not in entry:
        return ""
    step = f" {entry['step']}" if "step" in entry else ""
    return f"{entry['event']}{step}"[:_EVENT_CHARACTERS]


def _now() -> str:
    return datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="milliseconds")


def _finite(values: dict[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not _is_finite(value) else value
        for name, value in values.items()
    }


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max
