"""A disk of which all files can be taken while bytes are left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FILES = 300


@contextmanager
def disk_of_few_files(folder: Path) -> Iterator[None]:
    """Have the folder be one; skips the test where this user may not mount a file system."""
    command = ["mount", "-t", "tmpfs", "-o", f"size=16m,nr_inodes={_FILES}", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def all_taken(folder: Path) -> Iterator[None]:
    """No file more can be made in the folder, until this is left."""
    taken = folder / "taken"
    taken.mkdir()
    try:
        with suppress(OSError):
            for number in range(_FILES):
                (taken / str(number)).touch()
        with pytest.raises(OSError, match="No space left"):
            (taken / "one more").touch()
        yield
    finally:
        shutil.rmtree(taken)
