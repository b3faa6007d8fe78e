"""The process that speaks to W&B: what it outlives, and what it does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.reports import step
from tests.tracking.attempts import (
    PATIENCE_SECONDS,
    eventually,
    exit_code,
    finished,
    only_warning,
    records,
    rows,
    told,
    tracker,
    warnings,
)
from trainer_app.log import JobLog


def its_process(pid: int) -> psutil.Process:
    """The process that speaks to W&B for a process."""
    [found] = [
        child
        for child in psutil.Process(pid).children()
        if "trainer_app.tracking.child" in " ".join(child.cmdline())
    ]
    return found


def test_a_signal_to_the_whole_group_cuts_no_curve(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1), step(2)])
        eventually(lambda: told(tmp_path) == 1)  # the second waits for its evaluation
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(its_process(os.getpid()).pid, number)
        tracked.on_steps([step(3)])
        tracked.end(finished(tmp_path, steps=3, test_loss=None))

    [attempt] = records(tmp_path)
    assert [row["_step"] for row in rows(attempt)] == [1, 2, 3, 4]
    assert exit_code(attempt) == 0
    assert warnings(tmp_path) == []


def test_a_process_for_it_that_is_killed_ends_the_tracking_and_not_the_run(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1), step(2)])
        eventually(lambda: told(tmp_path) == 1)
        its_process(os.getpid()).kill()
        for number in range(3, 100):
            tracked.on_steps([step(number)])

    assert warnings(tmp_path) == ["Weights & Biases is switched off: its process ended with -9"]


def test_a_process_for_it_that_cannot_be_started_ends_the_tracking_and_not_the_run(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    warning = only_warning(tmp_path, log)
    assert warning.startswith("Weights & Biases is switched off: FileNotFoundError")


KILLED = """
import os, sys, time
from pathlib import Path
from tests.reports import step
from tests.tracking.attempts import tracker
from trainer_app.log import JobLog

folder = Path(sys.argv[1])
with tracker(folder, JobLog(folder / "run.jsonl")) as tracked:
    tracked.on_steps([step(number) for number in range(1, 101)])
    print("told", flush=True)
    time.sleep(600)
"""


@contextmanager
def a_worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a run that is tracked."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "told\n"
        yield worker
        worker.kill()


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
    )


def test_a_worker_that_is_killed_leaves_no_process_and_what_it_told(tmp_path: Path) -> None:
    with a_worker(tmp_path) as worker:
        eventually(lambda: told(tmp_path) == 99)
        processes = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        eventually(lambda: all_gone(processes))

    assert len(processes) > 1  # its own and W&B's
    [attempt] = records(tmp_path)
    assert [row["_step"] for row in rows(attempt)] == list(range(1, 100))
    assert not any(record["type"] == "exit" for record in attempt)


def test_a_worker_that_is_killed_leaves_no_process_that_waits_for_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: socket.socket
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent_server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    silent_server.settimeout(PATIENCE_SECONDS)
    with a_worker(tmp_path) as worker:
        silent_server.accept()[0].close()
        processes = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        eventually(lambda: all_gone(processes))

    assert len(processes) > 1
