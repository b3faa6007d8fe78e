"""An interrupt that comes late: a job whose result is in place completes, any other has none."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import evaluation, housekeeping, process, tokenizers, training
from tasks.job import Done, Job
from tasks.perform import perform
from tests.tasks.tiny_runs import TINY, QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec
from trainer_app.restore import is_whole
from trainer_app.store import lease, requests, runs
from trainer_app.store import tokenizers as names
from trainer_app.store.lease import JobKind


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


TOKENIZER = TokenizerSpec(
    method="char",
    vocab_size=100,
    corpus_path="a.txt",
    corpus_sha256=TINY.corpus_sha256,
    tokenizer_id="mine",
)


def train_tokenizer(spec: TokenizerSpec, interrupt: Interrupt) -> tuple[str, str | None]:
    """How the tokenizer ends, and the digest of its manifest."""

    def work(job: Job) -> Done | StopReason:
        interrupt.job = job
        return tokenizers.work(job)

    queued = names.create(process.database(), spec, queue="light")
    perform(queued.job_id, hostname="light-0@here", work=work)
    made = names.get(process.database(), queued.tokenizer_id)
    return made.status, made.artifact_sha256


def evaluate(run_id: str, interrupt: Interrupt) -> tuple[str, bool]:
    """How an evaluation of the run ends, and whether it is the one that is kept."""

    def work(job: Job) -> Done:
        interrupt.job = job
        return evaluation.work(job)

    asked = requests.create(
        process.database(),
        JobKind.EVALUATE,
        run_id,
        EvaluateSpec().to_json(),
        queue="q",
        user_id=0,
        topic="validation",
    ).request_id
    perform(asked, hostname="inference@here", work=work)
    ended = requests.get(process.database(), JobKind.EVALUATE, run_id, asked)
    kept = artifacts.read_evaluation(process.settings(), run_id, "validation")
    return ended.status, kept is not None and kept["request_id"] == asked


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
            patch.setattr(training, "_recorded", killed)
            with pytest.raises(Killed):
                train(run_id, interrupt)
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()
    monkeypatch.setattr(shutil, "rmtree", strike_and_remove)

    assert train(run_id, interrupt) == ("completed", True)


def strike_at(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, is_it: Callable[[Path], bool]
) -> None:
    """Strike while the names in such a folder are written to the disk."""
    sync = files.fsync_directory

    def strike_and_sync(directory: Path) -> None:
        if is_it(directory):
            interrupt.strike()
        sync(directory)

    for module in (files, evaluation):
        monkeypatch.setattr(module, "fsync_directory", strike_and_sync)


@pytest.mark.usefixtures("queue_run")  # for its corpus
def test_an_interrupt_at_the_rename_of_a_tokenizer_comes_too_late(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike_at(interrupt, monkeypatch, lambda folder: folder.name == "tokenizers")

    status, sealed = train_tokenizer(TOKENIZER, interrupt)

    folder = artifacts.tokenizer_directory(process.settings(), "mine")
    assert status == "completed"
    assert sealed == artifacts.pointer(folder).sha256


@pytest.mark.usefixtures("queue_run")
def test_an_interrupt_after_a_tokenizer_was_published_comes_too_late(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = artifacts.pointer

    def strike_and_point(folder: Path, *, sealed: str | None = None) -> artifacts.Pointer:
        interrupt.strike()
        return pointer(folder, sealed=sealed)

    monkeypatch.setattr(artifacts, "pointer", strike_and_point)

    assert train_tokenizer(TOKENIZER, interrupt)[0] == "completed"


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.usefixtures("queue_run")
def test_an_interrupt_before_a_tokenizer_is_in_place_cancels_it_whatever_has_its_name(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, *, is_replaced: bool
) -> None:
    folder = artifacts.tokenizer_directory(process.settings(), "mine")
    if is_replaced:  # of a job that was stopped by the version before once it had published
        assert (
            train_tokenizer(replace(TOKENIZER, tokenizer_id="other"), interrupt)[0] == "completed"
        )
        folder.with_name("other").rename(folder)
    strike_at(interrupt, monkeypatch, lambda path: path.parent == process.settings().paths.runs)

    assert train_tokenizer(TOKENIZER, interrupt) == ("cancelled", None)
    assert folder.exists() == is_replaced


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_at_an_evaluation_cancels_it_until_its_file_is_in_place(
    queue_run: QueueRun, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    run_id = queue_run(max_steps=1, holdout_fraction=0.1)
    assert train(run_id, interrupt) == ("completed", True)
    if before:
        assert evaluate(run_id, interrupt) == ("completed", True)

    with monkeypatch.context() as patch:
        strike_at(interrupt, patch, lambda folder: folder.name.endswith("-1.copy"))
        assert evaluate(run_id, interrupt) == ("cancelled", False)

    strike_at(interrupt, monkeypatch, lambda folder: folder.name == run_id)
    assert evaluate(run_id, interrupt) == ("completed", True)


def test_an_interrupt_once_an_evaluation_is_kept_comes_too_late(
    queue_run: QueueRun, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = queue_run(max_steps=1, holdout_fraction=0.1)
    assert train(run_id, interrupt) == ("completed", True)
    remove = files.remove_directory

    def strike_and_remove(path: Path) -> None:
        interrupt.strike()
        remove(path)

    monkeypatch.setattr(evaluation, "remove_directory", strike_and_remove)

    assert evaluate(run_id, interrupt) == ("completed", True)
