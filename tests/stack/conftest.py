"""What tests of a stack share that runs in their own process."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from trainer_app.stack import up as ups


@pytest.fixture
def signals() -> Iterator[ups._Signals]:
    """What asks a stack to stop, for as long as the test runs."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield ups._Signals()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
