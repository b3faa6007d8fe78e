"""A worker as the stack starts it: what signals and a broker in trouble do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from celery import Celery

from tasks import process
from tests.faults.victim import child_of
from trainer_app.core.spec import TrainSpec
from trainer_app.core.sums import SHA256, XXH3
from trainer_app.queue import WORKER_KEY, pinned_queue
from trainer_app.settings import Settings
from trainer_app.stack.guard import kill_group
from trainer_app.stack.processes import training_worker
from trainer_app.store import lease, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXT = "\n".join(f"line {number} of a text to learn from" for number in range(200)).encode()
SECONDS = 90.0  # for anything to happen on a busy machine


class RealWorker:
    """A worker that leads a process group, and what it does."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                training_worker(settings, 0, device="cpu", visible="").command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition."""
        give_up_at = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < give_up_at, self._log.read_text()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        return bool(process.redis_client().keys(f"{WORKER_KEY}*"))

    def child(self) -> psutil.Process:
        return child_of(psutil.Process(self.process.pid))

    def says(self, words: str) -> bool:
        return words in self._log.read_text()


_LEAK = """
import os, threading, time
from pathlib import Path

wish, kept = Path({folder!r}, str(os.getpid())), []

def leak():
    while not wish.exists():
        time.sleep(0.05)
    kept.append(bytearray(b"x") * (1_200 * 2**20))
    wish.unlink()

threading.Thread(target=leak, daemon=True).start()
"""


@pytest.fixture
def leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[psutil.Process], None]:
    """Lets a process of a worker that is started after this lose more than a gibibyte."""
    folder = tmp_path / "leak"
    folder.mkdir()
    # What Python imports at each start.
    (folder / "sitecustomize.py").write_text(_LEAK.format(folder=str(folder)))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    def lose(which: psutil.Process) -> None:
        wish = folder / str(which.pid)
        wish.touch()
        give_up_at = time.monotonic() + SECONDS
        while wish.exists():
            assert time.monotonic() < give_up_at
            time.sleep(0.05)

    return lose


@pytest.fixture
def real_worker(
    worker: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RealWorker]:
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "a.txt").write_bytes(TEXT)
    started = RealWorker(worker, tmp_path / "worker.log")
    try:
        started.until(started.is_ready)
        yield started
    finally:
        kill_group(started.process.pid)
        started.process.wait()


def create_run(*, steps: int) -> str:
    spec = TrainSpec(
        model_family="char_lstm",
        model_size="tiny",
        max_seq_len=16,
        batch_size=4,
        max_steps=steps,
        num_epochs=1_000_000,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
    )
    return runs.create(process.database(), spec, queue="trainer").run_id


def publish() -> None:
    """Wake the worker for all that is due."""
    for wakeup in lease.due(process.database()):
        assert process.queue().publish(wakeup)


def trains(run_id: str, *, attempt: int) -> bool:
    run = runs.get(process.database(), run_id)
    return (run.status, run.attempt) == ("running", attempt) and (run.step or 0) > 0


def has_completed(run_id: str) -> bool:
    return runs.get(process.database(), run_id).status == "completed"


def terminate_its_task(settings: Settings, _worker: RealWorker) -> None:
    """What Flower's button does."""
    with Celery(broker=settings.redis.url, set_as_current=False) as control:
        active = control.control.inspect(timeout=10, limit=1).active() or {}
        [[task]] = active.values()
        control.control.revoke(task["id"], terminate=True, signal="SIGTERM")


def terminate_its_child(_settings: Settings, worker: RealWorker) -> None:
    worker.child().terminate()


@pytest.mark.parametrize("terminate", [terminate_its_task, terminate_its_child])
def test_a_job_whose_process_alone_is_told_to_end_goes_on_in_another_one(
    worker: Settings,
    real_worker: RealWorker,
    terminate: Callable[[Settings, RealWorker], None],
) -> None:
    run_id = create_run(steps=10_000_000)
    publish()
    real_worker.until(lambda: trains(run_id, attempt=1))
    first = real_worker.child()

    terminate(worker, real_worker)

    real_worker.until(lambda: runs.get(process.database(), run_id).attempt > 1)
    real_worker.until(lambda: not first.is_running())
    real_worker.until(lambda: real_worker.child().pid != first.pid)
    run = runs.get(process.database(), run_id)
    assert run.crashes == 0
    assert run.checkpoint_step


def test_a_worker_whose_whole_group_is_told_to_end_hands_its_job_back(
    real_worker: RealWorker,
) -> None:
    run_id = create_run(steps=10_000_000)
    publish()
    real_worker.until(lambda: trains(run_id, attempt=1))
    assert [one.reads_sums for one in process.queue().workers()] == [(XXH3, SHA256)]

    os.killpg(real_worker.process.pid, signal.SIGTERM)

    assert real_worker.process.wait(SECONDS) == 0
    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == ("queued", 0)
    assert run.checkpoint_step
    assert not real_worker.says("WorkerLostError")


def test_a_worker_outlives_a_broker_that_refuses_writes(real_worker: RealWorker) -> None:
    # As MISCONF on a full disk: reads are answered, writes are not.
    process.redis_client().config_set("min-replicas-to-write", 1)
    try:
        real_worker.until(lambda: real_worker.says("NOREPLICAS"))
        time.sleep(2)
    finally:
        process.redis_client().config_set("min-replicas-to-write", 0)
    run_id = create_run(steps=2)
    publish()

    real_worker.until(lambda: runs.get(process.database(), run_id).status == "completed")

    assert real_worker.process.poll() is None


@pytest.fixture
def damaged_broker(worker: Settings) -> None:
    """One whose keys somebody has made something else of before the worker starts."""
    for key in (
        "trainer",
        pinned_queue(worker, "cpu"),
        "unacked",
        "unacked_index",
        "_kombu.binding.celery.pidbox",
        "_kombu.binding.celeryev",
        "_kombu.binding.trainer",
    ):
        process.redis_client().set(key, "x")


@pytest.mark.usefixtures("damaged_broker")
def test_a_worker_starts_on_a_broker_whose_keys_are_of_impossible_types(
    real_worker: RealWorker,
) -> None:
    run_id = create_run(steps=2)
    publish()
    real_worker.until(partial(has_completed, run_id))


def test_a_worker_goes_on_where_the_keys_of_its_queues_are_made_something_else_of(
    worker: Settings, real_worker: RealWorker
) -> None:
    client = process.redis_client()
    own = pinned_queue(worker, "cpu")
    for key in ("trainer", own, f"_kombu.binding.{own}", "_kombu.binding.celery.pidbox"):
        client.delete(key)
        client.set(key, "x")
    real_worker.until(lambda: real_worker.says("ResponseError"))
    run_id = create_run(steps=2)
    publish()
    real_worker.until(partial(has_completed, run_id))
    assert real_worker.process.poll() is None


def test_a_worker_does_one_job_after_the_other_in_one_process(
    worker: Settings, real_worker: RealWorker
) -> None:
    child = real_worker.child()

    for _ in range(3):
        run_id = create_run(steps=2)
        publish()
        real_worker.until(partial(has_completed, run_id))

    assert real_worker.child() == child


def test_a_process_whose_memory_has_grown_ends_after_its_job_and_another_takes_the_next(
    leak: Callable[[psutil.Process], None], worker: Settings, real_worker: RealWorker
) -> None:
    def train() -> None:
        run_id = create_run(steps=2)
        publish()
        real_worker.until(partial(has_completed, run_id))
        assert runs.get(process.database(), run_id).attempt == 1

    train()
    first = real_worker.child()
    train()
    assert real_worker.child() == first

    leak(first)
    train()
    real_worker.until(lambda: not first.is_running())
    train()

    assert real_worker.says("what this process has of the memory (cpu) has grown from")
