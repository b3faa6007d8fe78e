"""An interrupt that comes late: a run whose model is in place completes, any other has none."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tasks import housekeeping, process, training
from tasks.perform import Done, Job, perform
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.observer import StopReason
from trainer_app.restore import is_whole
from trainer_app.store import lease, runs


class Killed(BaseException):
    """The process is no more."""


def killed(*_: object) -> None:
    raise Killed


class Interrupt:
    """Strikes as that of a cancellation, which was asked for long before."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def strike(self) -> None:
        assert self.job is not None
        self.job.held.stop(StopReason.CANCEL)
        signal.raise_signal(signal.SIGALRM)


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    return queue_run(max_steps=3)


@pytest.fixture
def interrupt() -> Interrupt:
    return Interrupt()


def train(run_id: str, interrupt: Interrupt) -> tuple[str, bool]:
    """How the run ends, and whether its model is in place."""

    def work(job: Job) -> Done | StopReason:
        interrupt.job = job
        return training.work(job)

    perform(run_id, hostname="train-0@here", work=work)
    final = artifacts.model_directory(process.settings(), run_id)
    return runs.get(process.database(), run_id).status, is_whole(final)


def test_an_interrupt_before_the_model_is_in_place_cancels_the_run(
    run_id: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = files.fsync_tree

    def sync_and_strike(directory: Path) -> None:
        sync(directory)
        if directory.parent.name.startswith("staging-"):
            interrupt.strike()

    monkeypatch.setattr(files, "fsync_tree", sync_and_strike)

    assert train(run_id, interrupt) == ("cancelled", False)


def test_an_interrupt_at_the_rename_of_the_model_comes_too_late(
    run_id: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = files.fsync_directory

    def strike_and_sync(directory: Path) -> None:
        if directory.name == "models":
            interrupt.strike()
        sync(directory)

    monkeypatch.setattr(files, "fsync_directory", strike_and_sync)

    assert train(run_id, interrupt) == ("completed", True)


@pytest.mark.parametrize("published_before", [False, True])
def test_an_interrupt_while_the_working_state_is_removed_comes_too_late(
    run_id: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, published_before: bool
) -> None:
    workspace = process.settings().paths.runs / run_id
    remove = shutil.rmtree

    def strike_and_remove(path: Path, ignore_errors: bool = False) -> None:
        if path == workspace:
            interrupt.strike()
        remove(path, ignore_errors=ignore_errors)

    if published_before:  # by an attempt that died before it could say so
        with monkeypatch.context() as patch:
            patch.setattr(training, "_sealed", killed)
            with pytest.raises(Killed):
                train(run_id, interrupt)
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()
    monkeypatch.setattr(shutil, "rmtree", strike_and_remove)

    assert train(run_id, interrupt) == ("completed", True)
