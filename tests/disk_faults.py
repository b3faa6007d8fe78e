"""A disk on which the n-th open, write, fsync, rename, link or mkdir fails."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, AnyStr, Generic, Self

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer_app.core import tensors


class Disk:
    """Counts what is asked of it, and fails once, at number ``fails_at``, from 1."""

    def __init__(self, fails_at: int, number: int) -> None:
        self.fails_at = fails_at
        self.number = number
        self.asked = 0

    @property
    def failed(self) -> bool:
        return self.asked >= self.fails_at

    def fails_now(self) -> bool:
        self.asked += 1
        return self.asked == self.fails_at

    def ask(self, path: object = None) -> None:
        if self.fails_now():
            raise OSError(self.number, os.strerror(self.number), str(path))


class _File(Generic[AnyStr]):
    """A file whose writes may fail half-way."""

    def __init__(self, file: IO[AnyStr], disk: Disk) -> None:
        self._file: IO[AnyStr] = file
        self._disk = disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: AnyStr) -> int:
        if self._disk.fails_now():
            self._file.write(data[: len(data) // 2])
            raise OSError(self._disk.number, os.strerror(self._disk.number))
        return self._file.write(data)


@contextmanager
def failing_disk(fails_at: int, number: int) -> Iterator[Disk]:
    """Let the ``fails_at``-th operation that changes the disk fail with this error number."""
    disk = Disk(fails_at, number)
    real_open: object = io.open

    def opened(file: object, mode: str = "r", *rest: object, **others: object) -> object:
        writes = bool(set(mode) & set("wax+"))
        if writes and not isinstance(file, int):  # what os.open has opened is open
            disk.ask(file)
        assert callable(real_open)
        made: IO[str] = real_open(file, mode, *rest, **others)
        return _File(made, disk) if writes else made

    def saved(values: tensors.Tensors, path: Path) -> None:
        # Written by a library of its own, which words the error as text.
        save_file(values, path)
        if disk.fails_now():
            os.truncate(path, path.stat().st_size // 2)
            text = f"I/O error: {os.strerror(number)} (os error {number})"
            raise SafetensorError(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(tensors, "save_file", saved)
        for name in ("fsync", "rename", "replace", "link", "mkdir"):
            real = getattr(os, name)

            def change(*args: object, _real: object = real, **others: object) -> object:
                disk.ask(args[0])
                assert callable(_real)
                return _real(*args, **others)

            patch.setattr(os, name, change)
        yield disk
