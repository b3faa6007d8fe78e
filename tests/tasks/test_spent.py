"""After which jobs a worker's process ends: those that may have failed because of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tasks import process
from tasks.held import draining
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.worker import _Termination
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import (
    CorpusNotFound,
    CorpusTooShort,
    CudaNotAvailable,
    DataBankUnavailable,
    DiskFull,
    FieldError,
    LeaseLost,
    LossNotFinite,
    ModelIncompatible,
    OutOfMemory,
    TrainerError,
    Unavailable,
)
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
Outcome = Done | StopReason | BaseException


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer").run_id


def ending_in(outcome: Outcome) -> Callable[[Job], Done | StopReason]:
    def work(_job: Job) -> Done | StopReason:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return work


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        TrainerError("whatever this is"),
        MemoryError(),
        OutOfMemory("gpt2 small with batch_size 4"),
    ],
    ids=repr,
)
def test_a_process_in_which_a_job_failed_and_that_may_be_why_is_spent(
    run_id: str, error: Exception
) -> None:
    perform(run_id, hostname="train-0@here", work=ending_in(error))

    assert process.spent.is_set()
    assert runs.get(process.database(), run_id).status in {"queued", "failed"}


@pytest.mark.parametrize(
    "outcome",
    [
        Done(result="{}", result_id="run-a"),
        StopReason.CANCEL,
        StopReason.PAUSE,
        StopReason.DRAIN,
        StopReason.TIMEOUT,
        StopReason.FENCED,
        LeaseLost("another attempt has it"),
        CorpusTooShort("3 tokens of 16"),
        LossNotFinite("at step 3"),
        ModelIncompatible("another vocabulary"),
        CorpusNotFound("deleted"),
        FieldError("precision", "bf16 needs a GPU"),
        DiskFull("no space left"),
        DataBankUnavailable("503"),
    ],
    ids=repr,
)
def test_a_process_whose_job_ended_for_a_reason_outside_of_it_takes_the_next(
    run_id: str, outcome: Outcome
) -> None:
    perform(run_id, hostname="train-0@here", work=ending_in(outcome))

    assert not process.spent.is_set()


@pytest.mark.parametrize("can_open", [True, False])
def test_a_database_that_is_away_spends_no_process_that_could_open_it(
    run_id: str, monkeypatch: pytest.MonkeyPatch, can_open: bool
) -> None:
    def work(_job: Job) -> StopReason:
        if not can_open:
            monkeypatch.setattr(os, "devnull", "/proc/self/fd/1000000")
        raise Unavailable("the database cannot be opened")

    perform(run_id, hostname="train-0@here", work=work)

    assert process.spent.is_set() is not can_open


@pytest.mark.parametrize("drains", [True, False])
def test_a_database_that_is_away_when_a_message_comes_is_waited_for_unless_the_worker_is_to_stop(
    run_id: str, monkeypatch: pytest.MonkeyPatch, drains: bool
) -> None:
    answers = iter([Unavailable("away"), Unavailable("away"), None])

    def leave_to_newer(_db: Database, _job_id: str) -> str | None:
        if drains:
            draining.set()
        if (answer := next(answers)) is not None:
            raise answer
        return None

    monkeypatch.setattr("tasks.perform.leave_to_newer", leave_to_newer)
    perform(run_id, hostname="train-0@here", work=ending_in(StopReason.CANCEL))

    assert runs.get(process.database(), run_id).status == ("queued" if drains else "cancelled")
    assert not process.spent.is_set()


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_gpu_that_is_missing_spends_a_process_where_there_is_one(
    run_id: str, monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    devices = {"cpu": 1, "cuda": 1} if has_gpu else {"cpu": 1}
    monkeypatch.setattr("tasks.spent.device_bytes", lambda _: devices)

    perform(run_id, hostname="train-0@here", work=ending_in(CudaNotAvailable("no GPU")))

    assert process.spent.is_set() is has_gpu


def test_a_process_that_cannot_even_claim_a_job_is_spent(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim(*_: object, **__: object) -> Claim | None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(lease, "claim", claim)
    with pytest.raises(OSError, match="Too many open files"):
        perform(run_id, hostname="train-0@here", work=ending_in(StopReason.DRAIN))

    assert process.spent.is_set()


@pytest.fixture
def termination() -> Iterator[_Termination]:
    before = signal.getsignal(signal.SIGTERM)
    termination = _Termination()
    termination.heed()
    yield termination
    signal.signal(signal.SIGTERM, before)


def test_a_spent_process_ends_once_all_is_told(
    run_id: str,
    termination: _Termination,
    sent_events: Callable[[], list[dict[str, object]]],
) -> None:
    perform(run_id, hostname="train-0@here", work=ending_in(OutOfMemory("too large")))

    with pytest.raises(SystemExit):
        termination.leave()

    assert sent_events()[-1]["type"] == "trainer.job.failed.v1"


def test_a_spent_process_leaves_its_end_to_a_worker_that_shuts_down(
    worker: Settings, termination: _Termination, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.spent.set()
    termination.heed_the_worker(signal.SIGUSR2, None)

    termination.leave()


def test_a_process_that_has_told_nobody_anything_ends_all_the_same(
    worker: Settings, termination: _Termination
) -> None:
    process.spent.set()

    with pytest.raises(SystemExit):
        termination.leave()
