"""A run as its worker does it: real training, and what those hear who follow it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import wandb

from examples.discord_bot.events import (
    Event,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobStarted,
    MetricsCompleted,
    MetricsConfig,
    MetricsProgress,
    decode,
)
from tasks import process, reporting, training
from tasks.held import draining
from tasks.perform import perform
from tests.tasks.tiny_runs import ENDLESS, QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.observer import StartReport, StepReport
from trainer_app.core.performance import FLOPS_SOURCE
from trainer_app.errors import Unavailable
from trainer_app.log import job_log_path
from trainer_app.settings import Settings
from trainer_app.store import lease, metrics, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim


class Start(Protocol):
    """Queues a small run, and returns its id."""

    def __call__(
        self,
        *,
        max_steps: int = ...,
        eval_steps: int = ...,
        holdout: float = ...,
        test: float = ...,
    ) -> str: ...


Sent = Callable[[], list[dict[str, object]]]


@pytest.fixture
def start(queue_run: QueueRun) -> Start:
    """Queues runs of this worker."""

    def start(
        *, max_steps: int = 12, eval_steps: int = 6, holdout: float = 0.1, test: float = 0.1
    ) -> str:
        return queue_run(
            batch_size=8,
            max_steps=max_steps,
            learning_rate=1.0e-3,
            holdout_fraction=holdout,
            test_split_ratio=test,
            eval_steps=eval_steps,
            logging_steps=2,
            user_id=7,
        )

    return start


@pytest.fixture
def heard(sent_events: Sent) -> Callable[[], list[Event]]:
    """What a subscriber understands who knows only the contract."""

    def read() -> list[Event]:
        texts = [json.dumps(event) for event in sent_events()]
        return [event for text in texts if (event := decode(text)) is not None]

    return read


def test_a_run_is_announced_in_the_contracts_order(
    start: Start, heard: Callable[[], list[Event]], sent_events: Sent
) -> None:
    run_id = start()
    perform(run_id, hostname="train-0@here", work=training.work)

    announced = heard()
    assert len(announced) == len(sent_events())
    assert {(event.job_id, event.user_id) for event in announced} == {(run_id, 7)}
    kinds = [type(event) for event in announced]
    assert kinds[:2] == [JobStarted, MetricsConfig]
    assert kinds[-2:] == [JobCompleted, MetricsCompleted]
    assert set(kinds[2:-2]) == {JobProgress, MetricsProgress}


def test_a_curve_of_which_not_all_is_kept_in_memory_is_whole_in_the_end(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.reporting._KEPT_POINTS", 0)
    run_id = start()

    perform(run_id, hostname="train-0@here", work=training.work)

    curve = metrics.curve(process.database(), run_id)
    trained = [point.step for point in curve if point.train_loss is not None]
    assert trained == [1, 2, 4, 6, 8, 10, 12]
    assert [point.step for point in curve if point.val_loss is not None] == [6, 12]


def test_a_curve_of_which_the_disk_took_the_last_points_late_is_whole_and_in_no_other_file(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.reporting._KEPT_POINTS", 0)
    write = os.write
    on_start, close = reporting.RowReporter.on_start, reporting.RowReporter.close
    is_full = threading.Event()

    def write_but_no_points(file: int, data: bytes) -> int:
        if is_full.is_set() and b'"chain"' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    def start_on_a_full_disk(rows: reporting.RowReporter, report: StartReport) -> None:
        on_start(rows, report)
        is_full.set()

    def close_and_make_room(rows: reporting.RowReporter) -> None:
        close(rows)
        is_full.clear()

    monkeypatch.setattr(os, "write", write_but_no_points)
    monkeypatch.setattr(reporting.RowReporter, "on_start", start_on_a_full_disk)
    monkeypatch.setattr(reporting.RowReporter, "close", close_and_make_room)
    run_id = start()
    perform(run_id, hostname="train-0@here", work=training.work)

    curve = metrics.curve(process.database(), run_id)
    trained = [point.step for point in curve if point.train_loss is not None]
    assert trained == [1, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("when", ["queued", "training"])
def test_a_corpus_that_is_edited_fails_its_run_though_its_ids_were_made_before(
    start: Start, worker: Settings, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    perform(start(), hostname="train-0@here", work=training.work)  # which keeps the ids
    run_id = start()
    corpus = worker.paths.corpus / "a.txt"
    if when == "queued":
        corpus.write_bytes(b"another text")
    else:
        tell = reporting.RowReporter.on_steps

        def edit_and_tell(rows: reporting.RowReporter, steps: Sequence[StepReport]) -> None:
            corpus.write_bytes(b"another text")
            tell(rows, steps)

        monkeypatch.setattr(reporting.RowReporter, "on_steps", edit_and_tell)

    perform(run_id, hostname="train-0@here", work=training.work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert not artifacts.model_directory(worker, run_id).exists()


def test_each_event_has_its_fields_in_the_contracts_order(start: Start, sent_events: Sent) -> None:
    perform(start(), hostname="train-0@here", work=training.work)

    fields = {str(event["type"]): " ".join(event) for event in sent_events()}
    lifecycle = "type job_id user_id domain queue"
    curve = "epoch total_epochs step train_loss train_ppl grad_norm samples_per_sec loss perplexity"
    assert fields == {
        "trainer.job.started.v1": lifecycle,
        "trainer.job.progress.v1": f"{lifecycle} progress message",
        "trainer.job.completed.v1": f"{lifecycle} result_id result_bytes progress",
        "trainer.metrics.config.v1": "type job_id user_id model_family model_size total_epochs "
        "queue cpu_cores memory_mb optimal_threads batch_size learning_rate",
        "trainer.metrics.progress.v1": f"type job_id user_id {curve} val_loss val_ppl",
        "trainer.metrics.completed.v1": "type job_id user_id test_loss test_ppl artifact_path",
    }


def test_the_evaluations_are_announced(start: Start, heard: Callable[[], list[Event]]) -> None:
    perform(start(), hostname="train-0@here", work=training.work)

    evaluated = [
        event.step
        for event in heard()
        if isinstance(event, MetricsProgress) and event.val_loss is not None
    ]
    assert evaluated == [6, 12]


@pytest.mark.parametrize(
    ("holdout", "test", "name"),
    [(0.1, 0.1, "test_loss"), (0.1, 0.0, "best_val_loss"), (0.0, 0.0, "final_loss")],
)
def test_the_final_figures_are_those_of_the_best_split_that_there_is(
    holdout: float, test: float, name: str, start: Start, sent_events: Sent
) -> None:
    run_id = start(holdout=holdout, test=test)
    perform(run_id, hostname="train-0@here", work=training.work)

    last = sent_events()[-1]
    event = decode(json.dumps(last))
    assert isinstance(event, MetricsCompleted)
    folder = artifacts.model_directory(process.settings(), run_id)
    assert event.artifact_path == str(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert event.test_loss == manifest[name]
    lines = job_log_path(process.settings(), run_id).read_text().splitlines()
    (told,) = (line for line in map(json.loads, lines) if line["event"] == "final figures")
    assert told.items() >= {key: manifest[key] for key in ("test_loss", name)}.items()


def test_no_file_that_a_link_names_is_published_as_the_log(start: Start, tmp_path: Path) -> None:
    run_id = start()
    (secret := tmp_path / "secret").write_text("secret")
    (log := job_log_path(process.settings(), run_id)).parent.mkdir(exist_ok=True)
    log.symlink_to(secret)

    perform(run_id, hostname="train-0@here", work=training.work)

    folder = artifacts.model_directory(process.settings(), run_id)
    assert (folder / "manifest.json").exists()
    assert not (folder / "logs.jsonl").exists()


def test_a_manifest_tells_how_the_steps_were_computed_and_how_fast(start: Start) -> None:
    run_id = start()
    perform(run_id, hostname="train-0@here", work=training.work)

    folder = artifacts.model_directory(process.settings(), run_id)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["execution"] == {
        "cuda_graph": False,
        "why_no_graph": None,
        "compiled": False,
        "why_not_compiled": "what this model calls is fused already",
    }
    performance = manifest["performance"]
    assert performance["tokens_per_sec"] == pytest.approx(8 * 16_000 / performance["step_ms"])
    # rows of both layers' inputs and states, and the head's, as docs/training.md counts them
    vocabulary = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    weights = 1024 * (128 + 256) + 1024 * (256 + 256) + vocabulary * 256
    assert performance["flops_per_token"] == 6 * weights
    assert performance["flops_source"] == FLOPS_SOURCE
    assert performance["mfu"] is None
    assert performance["peak_memory_bytes"] > 1 << 24
    logged = (folder / "logs.jsonl").read_text()
    assert logged.count("goes uncompiled: what this model calls is fused already") == 1


def test_a_run_that_fails_says_why(
    worker: Settings, start: Start, heard: Callable[[], list[Event]]
) -> None:
    run_id = start()
    (worker.paths.corpus / "a.txt").write_bytes(b"something else")
    perform(run_id, hostname="train-0@here", work=training.work)

    last = heard()[-1]
    assert isinstance(last, JobFailed)
    assert last.error_kind == "user"


@pytest.fixture
def tracked(worker: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Weights & Biases, switched on and offline; where it keeps its files."""
    wandb.teardown()
    monkeypatch.setenv("WANDB__ENABLED", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    process.settings.cache_clear()
    yield worker.paths.data_root / "wandb"
    wandb.teardown()


@pytest.mark.slow
def test_a_tracked_run_that_is_drained_goes_on_with_its_curve(
    tracked: Path, start: Start, worker: Settings
) -> None:
    run_id = start(max_steps=ENDLESS, eval_steps=10)
    memory = worker.paths.runs / run_id / "tracked.json"

    with _when_it_has_told(memory, 10, draining.set):
        perform(run_id, hostname="train-0@here", work=training.work)
    draining.clear()
    assert runs.get(process.database(), run_id).status == "queued"
    told: int = json.loads(memory.read_bytes())["logged"]
    cancel = partial(lease.request_cancel, process.database(), run_id)
    with _when_it_has_told(memory, told + 10, cancel):
        perform(run_id, hostname="train-0@here", work=training.work)

    assert runs.get(process.database(), run_id).status == "cancelled"
    first, second = (_steps(file) for file in sorted(tracked.glob("offline-run-*/*.wandb")))
    assert first[-1] == told
    steps = first + second
    assert steps == list(range(1, steps[-1] + 1))  # each one, and none twice


@contextmanager
def _when_it_has_told(memory: Path, step: int, act: Callable[[], object]) -> Iterator[None]:
    """Act once the tracking has come to a step, while the block runs."""

    def wait() -> None:
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            if memory.exists() and json.loads(memory.read_bytes())["logged"] >= step:
                break
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def _steps(file: Path) -> list[int]:
    """The steps that wandb's own reader finds in an attempt's file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record["history"]["step"]["num"] for record in records if record["type"] == "history"]


def test_a_run_that_is_cancelled_while_its_model_is_written_keeps_a_checkpoint_and_no_model(
    start: Start, worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start()

    def cancel_first(folder: Path) -> None:
        lease.request_cancel(process.database(), run_id)
        files.fsync_tree(folder)

    monkeypatch.setattr("trainer_app.core.fit.fsync_tree", cancel_first)
    perform(run_id, hostname="train-0@here", work=training.work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.step, run.checkpoint_step) == ("cancelled", 12, 12)
    assert not artifacts.model_directory(worker, run_id).exists()
    assert not list(worker.paths.runs.rglob("model"))


def test_a_run_whose_database_is_away_when_its_model_is_written_is_published_when_it_is_back(
    start: Start, worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start()
    file = process.database().file
    assert file is not None
    aside = file.with_suffix(".aside")
    back = threading.Timer(2.0, lambda: aside.rename(file))

    def move_away(folder: Path) -> None:
        files.fsync_tree(folder)
        file.rename(aside)  # before the row is asked for the last time whether it is cancelled
        back.start()

    monkeypatch.setattr("trainer_app.core.fit.fsync_tree", move_away)
    perform(run_id, hostname="train-0@here", work=training.work)
    back.join()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt, run.step) == ("completed", 1, 12)
    assert artifacts.model_directory(worker, run_id).exists()


def test_a_database_that_is_away_when_a_curve_is_cut_is_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start()
    first = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert first is not None
    lease.hand_back(process.database(), first, message="")
    cut, away = metrics.cut, [Unavailable("the database is away or busy")] * 2

    def cut_later(database: Database, claim: Claim, *, after: int) -> None:
        if away:
            raise away.pop()
        cut(database, claim, after=after)

    monkeypatch.setattr(metrics, "cut", cut_later)
    perform(run_id, hostname="train-0@here", work=training.work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("completed", 2)


def test_a_curve_ends_where_its_run_does_however_far_an_attempt_before_had_got(
    start: Start,
) -> None:
    run_id = start()
    first = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert first is not None
    further = metrics.MetricPoint(step=99, train_loss=1.0)
    lease.progress(process.database(), first, lease.Progress(), [further])
    lease.hand_back(process.database(), first, message="")

    perform(run_id, hostname="train-0@here", work=training.work)

    assert metrics.curve(process.database(), run_id)[-1].step == 12
