"""One at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, never
from trainer_app.file_lock import locked


def count_up(lock: str, counter: str) -> None:
    for _ in range(20):
        with locked(Path(lock), should_stop=never):
            value = int(Path(counter).read_text())
            time.sleep(0.001)
            Path(counter).write_text(str(value + 1))


def hold_and_die(lock: str) -> None:
    with locked(Path(lock), should_stop=never):
        os._exit(9)


def test_those_that_want_the_same_lock_take_turns(tmp_path: Path) -> None:
    lock, counter = tmp_path / "folder" / ".lock", tmp_path / "counter"
    counter.write_text("0")
    threads = [threading.Thread(target=count_up, args=(str(lock), str(counter))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert counter.read_text() == "60"


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(str(lock),))
    process.start()
    process.join(60)
    assert process.exitcode == 9

    with locked(lock, should_stop=lambda: StopReason.TIMEOUT):
        pass


def test_who_is_stopped_does_not_wait(tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock", should_stop=never),
        pytest.raises(StopRequested),
        locked(tmp_path / ".lock", should_stop=lambda: StopReason.DRAIN),
    ):
        pass
