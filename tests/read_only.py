"""A file of SQLite that nobody may write to for a while."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(file: Path) -> Iterator[None]:
    """Who opens a file of SQLite from now on may only read it."""
    file.chmod(0o444)
    as_root = os.access(file, os.W_OK)
    if as_root and subprocess.run(["chattr", "+i", file], check=False).returncode:
        pytest.skip("root may write to all files here")
    try:
        yield
    finally:
        if as_root:
            subprocess.run(["chattr", "-i", file], check=True)
        file.chmod(0o644)
