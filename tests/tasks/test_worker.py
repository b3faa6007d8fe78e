"""Workers: the tasks that they know, and what a child does when its worker is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from redis.client import Pipeline

from tasks import process
from tasks.app import app
from tasks.flag import Flag
from tasks.held import Held, draining
from tasks.worker import _beat, _Termination, heed_a_termination, leave_after_a_termination
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.queue import TASK_NAMES, WORKER_KEY
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.lease import Claim, JobKind
from trainer_app.wishes import cancelled_key

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def claim(worker: Settings) -> Claim:
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    claim = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert claim is not None
    return claim


def test_every_task_that_is_sent_is_registered_in_the_worker() -> None:
    app.loader.import_default_modules()

    assert set(TASK_NAMES.values()) <= set(app.tasks)
    assert set(TASK_NAMES) == set(JobKind)


def test_the_workers_parent_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "from tasks.app import app\n"
        "app.loader.import_default_modules()\n"
        "print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "[]"


def test_a_job_that_does_not_stop_when_it_is_fenced_ends_with_its_process(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.held.STUCK_SECONDS", 0.5)
    ended = threading.Event()

    def end(code: int) -> None:
        ended.set()

    with Held(
        process.database(),
        process.redis_client(),
        process.settings().jobs,
        claim,
        end_process=end,
    ) as held:
        lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)

        assert ended.wait(10)
        assert held.should_stop() is StopReason.FENCED


def test_a_lost_lease_overrides_a_cancellation(claim: Claim) -> None:
    held = Held(process.database(), process.redis_client(), process.settings().jobs, claim)

    held.stop(StopReason.CANCEL)
    held.stop(StopReason.DRAIN)
    assert held.should_stop() is StopReason.CANCEL
    held.stop(StopReason.FENCED)

    assert held.should_stop() is StopReason.FENCED


def test_who_slept_between_reading_a_cancellation_and_writing_it_cancels_nobody_else(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Pipeline.execute
    slept = threading.Event()

    def execute_and_sleep(pipe: Pipeline, raise_on_error: bool = True) -> list[object]:
        answers: list[object] = execute(pipe, raise_on_error)
        if not slept.is_set():  # for longer than the lease: another worker has the run by then
            slept.set()
            lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")
            lease.reap(process.database(), max_crashes=3)
            lease.claim(process.database(), claim.job_id, "train-1@here:2", lease_seconds=60)
        return answers

    monkeypatch.setattr(Pipeline, "execute", execute_and_sleep)
    process.redis_client().set(cancelled_key(claim.job_id), "1")

    with Held(process.database(), process.redis_client(), process.settings().jobs, claim) as held:
        give_up_at = time.monotonic() + 20
        while held.should_stop() is None:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)

        assert slept.is_set()
        assert held.should_stop() is StopReason.FENCED
    (successor,) = lease.owned(process.database(), "train-1@here")
    assert not successor.cancel_requested


def test_work_goes_on_while_redis_and_the_database_are_away(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    for make in (process.settings, process.database, process.redis_client):
        make.cache_clear()

    with Held(process.database(), process.redis_client(), process.settings().jobs, claim) as held:
        time.sleep(2)

        assert held.should_stop() is None


ALONE = """
import os, sys, time, weakref
import structlog
from celery.worker import state
from tasks import worker

class Request:
    args, worker_pid = ("run-1",), None

class Changing(weakref.WeakSet):
    def __iter__(self):
        for request in super().__iter__():
            self.add(later)
            yield request

class Node:
    hostname = "train-0@here"
    class pool:
        info = {"processes": []}
        unheard = frozenset

def wait_for(event):
    give_up_at = time.monotonic() + 30
    while event not in [line["event"] for line in lines]:
        if time.monotonic() > give_up_at:
            sys.exit(f"{event}: not among {lines}")
        time.sleep(0.02)

class NoProcess:
    def keep(self, *, after_seconds):
        raise BlockingIOError("no process is to be had")

worker._WATCH_SECONDS = 0.1
worker.spares = NoProcess()
request, later = Request(), Request()
with structlog.testing.capture_logs() as lines:
    worker.remember_the_worker(Node)
    worker.start_to_beat()
    wait_for("Redis is away")
    wait_for("no spare process could be started")
    wait_for("the database is away")
    state.active_requests = Changing([request])
    wait_for("no look at the children this time")
    state.active_requests = None
    wait_for("a look at the children failed")
    worker.drain()
    wait_for("the worker's key was left to expire")
    os._exit(0)  # its threads go on: an end in order would wait for their streams
"""


@pytest.mark.usefixtures("worker")
def test_a_worker_goes_on_whatever_is_away_or_changes_under_its_eyes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")

    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=100, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("worker")
def test_a_worker_whose_sign_of_life_fails_for_no_known_reason_gives_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping, client, failed = Flag(), process.redis_client(), list[str]()

    def fail_once() -> redis.Redis:
        if not failed:
            failed.append("")
            raise ZeroDivisionError("nobody thought of this")
        return client

    with monkeypatch.context() as patch:
        patch.setattr("tasks.worker._stopping", stopping)
        patch.setattr("tasks.worker._BEAT_SECONDS", 0.1)
        patch.setattr(process, "redis_client", fail_once)
        beat = threading.Thread(target=_beat, args=("train-0@here", ["trainer"]))
        beat.start()
        give_up_at = time.monotonic() + 20
        while not client.exists(f"{WORKER_KEY}train-0@here"):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        stopping.set()
        beat.join(20)

    assert failed
    assert not client.exists(f"{WORKER_KEY}train-0@here")


@pytest.fixture
def terminations() -> Iterator[list[int]]:
    """Each SIGTERM that nobody but the pool has heeded, as it would end a child."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    yield came
    draining.clear()
    signal.signal(signal.SIGTERM, before)


def test_a_task_that_nobody_asks_to_end_leaves_its_process_as_it_was(
    terminations: list[int],
) -> None:
    heed_a_termination()
    leave_after_a_termination()

    assert not draining.is_set()
    signal.raise_signal(signal.SIGTERM)
    assert terminations == [signal.SIGTERM]


def test_a_child_that_is_terminated_at_its_task_drains_and_ends_after_it(
    terminations: list[int],
) -> None:
    termination = _Termination()
    termination.heed()
    signal.raise_signal(signal.SIGTERM)

    assert draining.is_set()
    with pytest.raises(SystemExit):
        termination.leave()
    assert terminations == []


def test_a_child_that_is_terminated_while_its_worker_shuts_down_ends_a_little_later(
    terminations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.worker._LEAVE_SECONDS", 0.05)
    termination = _Termination()
    termination.heed()
    termination.heed_the_worker(signal.SIGUSR2, None)
    signal.raise_signal(signal.SIGTERM)
    termination.leave()

    give_up_at = time.monotonic() + 20
    while not terminations:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


TWO_SIGNALS = """
import os, signal, threading
from tasks import held, worker

notify = threading.Condition.notify_all
asked = []

def notify_and_be_asked_again(condition):
    # As two signals that come at once: the second is handled within the handler of the first.
    asked.append(condition)
    if len(asked) == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    notify(condition)

threading.Condition.notify_all = notify_and_be_asked_again
child = worker._Termination()
for handle in (child._drain, child.heed_the_worker, lambda *_: worker.drain()):
    asked.clear()
    signal.signal(signal.SIGUSR1, handle)
    handle(0, None)
print(held.draining.is_set(), worker._stopping.is_set(), flush=True)
os._exit(0)
"""


def test_a_signal_that_comes_while_another_is_handled_is_no_deadlock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_SIGNALS], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.split() == ["True", "True"], done.stderr


ORPHAN = """
import sys, time
from tasks import perform, process

def work(job):
    print("at work", flush=True)
    give_up_at = time.monotonic() + 60
    while (reason := job.held.should_stop()) is None and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return reason

process.remember_the_worker()
perform.perform(sys.argv[1], hostname="train-0@here", work=work)
"""


def test_a_child_whose_worker_is_gone_hands_its_job_back(worker: Settings) -> None:
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    # Its parent is a shell that ends with its input.
    command = ["sh", "-c", '"$@" & read -r line', "sh", sys.executable, "-c", ORPHAN, run_id]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as parent:
        assert parent.stdout is not None
        while (said := parent.stdout.readline()) != "at work\n":
            assert said
        said, _ = parent.communicate(timeout=90)  # which waits for the child's end, too

    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == ("queued", 0), said
    assert (worker.paths.logs / f"{run_id}.jsonl").read_text().count("its worker shuts down") == 1


@pytest.mark.parametrize("look", ["_look_at_the_row", "_look_at_the_news"])
def test_a_look_that_fails_for_no_known_reason_ends_neither_the_lease_nor_the_ear_for_a_stop(
    claim: Claim, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    failed = threading.Event()
    real = getattr(Held, look)

    def once(held: Held, now: float) -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("nobody thought of this")
        real(held, now)

    monkeypatch.setattr(Held, look, once)
    with Held(process.database(), process.redis_client(), process.settings().jobs, claim) as held:
        assert failed.wait(10)
        lease.request_cancel(process.database(), claim.job_id)
        give_up_at = time.monotonic() + 10
        while held.should_stop() is None and time.monotonic() < give_up_at:
            time.sleep(0.05)
    assert held.should_stop() is StopReason.CANCEL


def test_who_cannot_renew_the_lease_for_no_known_reason_asks_whether_it_still_stands(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_held: Held, _now: float) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Held, "_look_at_the_row", fail)
    jobs = replace(process.settings().jobs, lease_seconds=2.0)
    with Held(process.database(), process.redis_client(), jobs, claim) as held:
        assert held.should_stop() is None
        lease.expire(process.database(), claim.job_id, owner_prefix=claim.owner)
        assert lease.reap(process.database(), max_crashes=3)
        give_up_at = time.monotonic() + 20
        while held.should_stop() is None and time.monotonic() < give_up_at:
            time.sleep(0.05)
    assert held.should_stop() is StopReason.FENCED
