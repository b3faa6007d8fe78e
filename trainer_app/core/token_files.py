"""Files of token ids that are made once and kept: written with what tells when they are damaged.

``meta.json`` names the size and the CRC-32 of each ``.bin`` file beside it, and has a CRC-32 of its
own. They guard against disks and crashes, not against people: whoever can write a file can write
its sum as well, be it cryptographic. CRC-32 is the fastest in the standard library (2.2 GB/s of a
core, SHA-256 1.0), and what a run is to read is summed before its first step, but where this
process has just done so: 10 GB of ids take 5 s. Whether somebody has written to what it has read is
looked at again, by the file's times, before anything is made of it that lasts: ``Watch``.
"""

from __future__ import annotations

import errno
import json
import os
import time
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from trainer_app.core.files import DAMAGE, write_atomically
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.errors import IdsChanged
from trainer_app.safe_paths import open_regular

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np
    from numpy.typing import NDArray

META: Final = "meta.json"
_SUMMED: Final = frozenset({"files", "crc32"})  # what meta.json of earlier versions has not
PIECE_BYTES: Final = 1 << 20  # read at once: still in the processor's cache when summed
TRUSTED_SECONDS: Final = 3_600.0  # after it was summed, a file that nobody has written to since
SETTLED_NS: Final = 2_000_000_000  # after a change, the next has another time on any file system


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which folder this is: one that was made anew in its place is another."""

    device: int
    inode: int
    written_ns: int | None  # its META, last of all: file systems use the numbers of inodes again

    @classmethod
    def of(cls, directory: Path) -> Identity | None:
        """None: there is none."""
        try:
            folder = directory.lstat()
        except OSError:
            return None
        try:
            written_ns = (directory / META).lstat().st_mtime_ns
        except OSError:
            written_ns = None
        return cls(device=folder.st_dev, inode=folder.st_ino, written_ns=written_ns)


class Damaged(Exception):
    """A folder of token ids does not hold what was written: it is to be made anew."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory.name}: {reason}")
        self.directory = directory
        self.identity: Identity | None = None  # of the folder, as ``examining`` found it


@contextmanager
def examining(directory: Path) -> Iterator[None]:
    """What is found damaged within the block is the folder that stands there at its beginning.

    Should another have taken its place meanwhile, nobody can tell which of both it was.
    """
    identity = Identity.of(directory)
    try:
        yield
    except Damaged as damage:
        damage.identity = identity
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What a file holds, in two numbers."""

    bytes: int
    crc32: int


class SummedFile:
    """A file that is written from its start to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = self._crc32 = 0

    def write(self, data: memoryview) -> None:
        """Append the bytes of an array."""
        self._file.write(data)
        self._bytes += data.nbytes
        self._crc32 = zlib.crc32(data, self._crc32)

    @property
    def sum(self) -> Sum:
        """Of what was written so far."""
        return Sum(bytes=self._bytes, crc32=self._crc32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What meta.json says; Damaged where that is no meta.json of ours."""

    directory: Path
    fields: Mapping[str, object]
    sums: Mapping[str, Sum]  # by file, without ".bin"; empty: of a version that kept none

    @classmethod
    def read(cls, directory: Path) -> Meta:
        """Raises Damaged, and FileNotFoundError where the folder is gone."""
        with _damage_named(directory):
            with open_regular(directory / META) as file:
                fields: object = json.load(file)
            if not isinstance(fields, dict):
                raise Damaged(directory, f"{META} holds no object")
            if not fields.keys() & _SUMMED:
                return cls(directory=directory, fields=fields, sums={})
            if fields.pop("crc32", None) != _crc32(fields):
                raise Damaged(directory, f"{META} is not what was written")
            sums = {name: Sum(**found) for name, found in fields.pop("files").items()}
            return cls(directory=directory, fields=fields, sums=sums)

    def number(self, name: str) -> int:
        """A count. Raises Damaged for anything else."""
        value = self.fields.get(name)
        if type(value) is int and value >= 0:
            return value
        raise Damaged(self.directory, f"{META} has no count {name!r}")


def write_meta(
    directory: Path, fields: Mapping[str, int | str], files: Mapping[str, SummedFile]
) -> None:
    """Write down what ``Meta`` reads, once all files are written. Raises DiskFull."""
    meta: dict[str, object] = {
        **fields,
        "files": {name: asdict(file.sum) for name, file in files.items()},
    }
    meta["crc32"] = _crc32(meta)
    write_atomically(directory / META, _encoded(meta))


def check_sums(
    directory: Path, sums: Mapping[str, Sum], should_stop: ShouldStop
) -> dict[str, State]:
    """Read all files, and raise Damaged unless they hold what was written; as they were then.

    Raises StopRequested, and FileNotFoundError where the folder is gone.
    """
    states = {}
    buffer = memoryview(bytearray(PIECE_BYTES))
    for name, expected in sums.items():
        crc32 = 0
        with _opened(directory, name) as file:
            state = states[name] = State.of(os.fstat(file.fileno()), expected)
            if state.was_right():
                continue
            while size := file.readinto(buffer):
                crc32 = zlib.crc32(buffer[:size], crc32)
                if size == len(buffer):  # else this was the last
                    raise_if_stopped(should_stop)
        if crc32 != expected.crc32:
            raise Damaged(directory, f"{name}.bin is not what was written")
        state.remember()
    return states


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Which file this is and when it was last changed: no two contents have the same."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int  # of the inode, too: whoever sets the other one back cannot set this
    crc32: int  # that it is to have
    settled: bool = field(compare=False)  # else it may be changed again and look the same

    @classmethod
    def of(cls, found: os.stat_result, expected: Sum) -> State:
        """Of a file that was looked at just now, and is to have that sum."""
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            bytes=found.st_size,
            modified_ns=found.st_mtime_ns,
            changed_ns=found.st_ctime_ns,
            crc32=expected.crc32,
            settled=time.time_ns() - found.st_ctime_ns > SETTLED_NS,
        )

    def was_right(self) -> bool:
        """Whether it had its sum a short while ago."""
        return time.monotonic() < _trusted.get(self, 0.0)

    def remember(self) -> None:
        """It was summed, and is right."""
        now = time.monotonic()
        for other in [state for state, until in _trusted.items() if until <= now]:
            del _trusted[other]
        if self.settled:
            _trusted[self] = time.monotonic() + TRUSTED_SECONDS


_trusted: Final[dict[State, float]] = {}  # until when, by this process's clock


class Watch:
    """Whether ids that are mapped to memory are still what they were when their file was summed.

    Whoever writes to the file is noticed, whatever its name is by then; a disk that gives other
    bytes than before is not, for that changes no time.
    """

    def __init__(
        self, path: Path, ids: NDArray[np.uint16] | NDArray[np.uint32], state: State
    ) -> None:
        """``state``: of the file when it was summed, before it was mapped.

        Raises FileNotFoundError where another has its name since, or none.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        if (found.st_dev, found.st_ino) != (state.device, state.inode):
            raise FileNotFoundError(errno.ENOENT, "it was made anew meanwhile", str(path))
        self._ids = ids
        self._expected = Sum(bytes=state.bytes, crc32=state.crc32)
        self._known = state

    def check(self) -> None:
        """Raise IdsChanged unless all that was read of them up to now was what was written.

        As fast for large files as for small ones; those whose times have changed are summed again.
        """
        try:
            now = State.of(os.fstat(self._descriptor), self._expected)
        except OSError:  # a network's file that another host has deleted
            now = replace(self._known, settled=False)
        if now == self._known and now.settled and self._known.settled:
            return
        if now.bytes != self._expected.bytes or self._sum() != self._expected:
            raise IdsChanged(f"{self._path}: its token ids were changed while they were read")
        self._known = now

    def _sum(self) -> Sum:
        crc32 = 0
        for start in range(0, len(self._ids), PIECE_BYTES):
            crc32 = zlib.crc32(self._ids[start : start + PIECE_BYTES].data, crc32)
        return Sum(bytes=self._ids.nbytes, crc32=crc32)


def check_sizes(directory: Path, sizes: Mapping[str, int]) -> None:
    """Raise Damaged unless all files are there and so large; as fast for large ones as for small.

    Raises FileNotFoundError where the folder is gone.
    """
    for name, size in sizes.items():
        found = size_of(directory, name)
        if found != size:
            raise Damaged(directory, f"{name}.bin has {found:,} bytes of {size:,}")


def size_of(directory: Path, name: str) -> int:
    """The bytes of a file; raises as ``check_sizes`` does."""
    with _opened(directory, name) as file:
        return os.fstat(file.fileno()).st_size


@contextmanager
def _opened(directory: Path, name: str) -> Iterator[BufferedReader]:
    with _damage_named(directory), open_regular(directory / f"{name}.bin") as file:
        yield file


@contextmanager
def _damage_named(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        if not directory.is_dir():
            raise  # clean-up has been here: nothing is damaged
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            raise  # too many open files, no permission: the fault is not the file's
        raise Damaged(directory, str(error)) from error


def _crc32(meta: Mapping[str, object]) -> int:
    return zlib.crc32(_encoded(meta))


def _encoded(meta: Mapping[str, object]) -> bytes:
    return json.dumps(meta, sort_keys=True).encode()
