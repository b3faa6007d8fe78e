"""The whole stack, as a user starts it: real broker, real workers, real HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for the tests of this process that leave it as it was."""
    for name in list(os.environ):
        if name.startswith(("REDIS__", "DATABASE__", "APP__", "JOBS__", "CELERY__")):
            del os.environ[name]
    root = tmp_path_factory.mktemp("stack")
    with running_stack(root, environment={"APP__THREADS": "1"}) as stack:
        yield stack


@pytest.fixture
def client(stack: RunningStack) -> Iterator[Client]:
    """Speaks to the stack."""
    with Client(stack.api_url) as client:
        yield client


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some English that every machine has: the standard library's own documentation strings."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
    source = Path(os.__file__).parent
    names = ("argparse.py", "decimal.py", "difflib.py", "doctest.py", "inspect.py", "typing.py")
    path.write_bytes(b"".join((source / name).read_bytes() for name in names))
    return path
