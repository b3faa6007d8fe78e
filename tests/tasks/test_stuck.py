"""Jobs that do not stop when they are asked to: interrupted, then ended with their process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tasks import housekeeping, process, staging, training
from tasks.held import Held
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.watchdog import KILL_SECONDS, Watchdog
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import Unavailable
from trainer_app.pids import is_stopped
from trainer_app.restore import is_whole
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.database import Database

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")

Sent = Callable[[], list[dict[str, object]]]


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer").run_id


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield other
    other.kill()
    other.wait()


def deaf(job: Job) -> Done | StopReason:
    """Work that asks for no stop, as when it waits for a disk or a socket."""
    time.sleep(30)
    pytest.fail("nobody interrupted it")


def test_a_job_that_does_not_heed_a_cancellation_is_interrupted_in_what_it_waits_for(
    run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent
) -> None:
    monkeypatch.setattr("tasks.held.INTERRUPT_SECONDS", 0.5)

    def work(job: Job) -> Done | StopReason:
        lease.request_cancel(process.database(), run_id)
        return deaf(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "cancelled"
    assert sent_events()[-1]["message"] == "cancelled"


def test_a_job_that_is_past_its_work_is_not_interrupted(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.held.INTERRUPT_SECONDS", 0.3)
    claim = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert claim is not None

    with Held(process.database(), process.redis_client(), process.settings().jobs, claim) as held:
        with held.interruptible():
            held.stop(StopReason.CANCEL)
        time.sleep(1)
        signal.raise_signal(signal.SIGALRM)  # one that came late

    assert held.should_stop() is StopReason.CANCEL


STUCK = """
import signal, sys, time
from tasks import held, perform, process
from trainer_app.store import lease

held.INTERRUPT_SECONDS, held.STUCK_SECONDS, held.DRAIN_SECONDS = 0.2, 1.0, 1.0
signal.signal(signal.SIGTERM, signal.SIG_IGN)

def work(job):
    if sys.argv[2] == "cancel":
        lease.request_cancel(process.database(), sys.argv[1])
    elif sys.argv[2] == "fence":
        lease.expire(process.database(), sys.argv[1], owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)
    else:
        held.draining.set()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    time.sleep(60)

perform.perform(sys.argv[1], hostname="train-0@here", work=work)
"""


def exit_code_of_a_stuck_one(run_id: str, ask: str) -> int:
    command = [sys.executable, "-c", STUCK, run_id, ask]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.parametrize(("ask", "status"), [("cancel", "cancelled"), ("drain", "queued")])
def test_a_job_that_cannot_be_interrupted_is_written_down_and_its_process_ends(
    worker: Settings, run_id: str, ask: str, status: str
) -> None:
    assert exit_code_of_a_stuck_one(run_id, ask) == 1

    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == (status, 0)
    log = (worker.paths.logs / f"{run_id}.jsonl").read_text()
    assert "did not stop" in log


def test_a_job_that_cannot_be_interrupted_and_is_another_attempts_ends_its_process_alone(
    worker: Settings, run_id: str
) -> None:
    assert exit_code_of_a_stuck_one(run_id, "fence") == 1

    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == ("queued", 1)
    log = (worker.paths.logs / f"{run_id}.jsonl").read_text()
    assert "did not stop" not in log


SLOW_DISK = """
import sys, time
from tasks import held, perform, process, training
from trainer_app.core import checkpoint

held.DRAIN_SECONDS = 1.0
replace_directory = checkpoint.replace_directory
saved = []

def slow(source, target):
    if saved:
        held.draining.set()
        time.sleep(60)  # a disk that takes its time for the second one
    replace_directory(source, target)
    saved.append(target)

checkpoint.replace_directory = slow
perform.perform(sys.argv[1], hostname="train-0@here", work=training.work)
"""


def test_a_checkpoint_that_a_drain_does_not_wait_for_leaves_the_one_before_to_go_on_from(
    worker: Settings, queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__CHECKPOINT_SEC", "0")
    process.settings.cache_clear()
    run_id = queue_run()

    done = subprocess.run(
        [sys.executable, "-c", SLOW_DISK, run_id], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == ("queued", 0)
    perform(run_id, hostname="train-0@here", work=training.work)

    assert runs.get(process.database(), run_id).status == "completed"
    log = (worker.paths.logs / f"{run_id}.jsonl").read_text()
    assert "did not stop when it was asked to" in log
    assert "attempt 2: its worker shut down, resumed from 1" in log


LATE_DISK = """
import signal, sys, time
from tasks import held, perform, process, training
from trainer_app import artifacts
from trainer_app.store import lease

held.STUCK_SECONDS = held.DRAIN_SECONDS = 1.0
publish = artifacts.publish

def rename_and_wait(*arguments, **named):
    if sys.argv[2] == "in place":
        publish(*arguments, **named)
    if sys.argv[3] == "cancel":
        lease.request_cancel(process.database(), sys.argv[1])
    else:
        held.draining.set()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    time.sleep(60)  # a disk that does not answer

artifacts.publish = rename_and_wait
perform.perform(sys.argv[1], hostname="train-0@here", work=training.work)
"""


@pytest.mark.parametrize(
    ("where", "ask", "status"),
    [
        ("in place", "cancel", "completed"),
        ("in place", "drain", "completed"),
        ("beside it", "cancel", "cancelled"),
        ("beside it", "drain", "queued"),
    ],
)
def test_a_run_whose_disk_hangs_while_its_model_is_renamed_ends_as_the_disk_says(
    worker: Settings, queue_run: QueueRun, where: str, ask: str, status: str
) -> None:
    run_id = queue_run(max_steps=3)

    done = subprocess.run(
        [sys.executable, "-c", LATE_DISK, run_id, where, ask],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    before = runs.get(process.database(), run_id).status
    assert before == ("running" if where == "in place" else status)
    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes) == (status, 0)
    assert staging.attempts(worker, run_id) == []
    final = artifacts.model_directory(worker, run_id)
    assert is_whole(final) == (status == "completed")


def test_a_job_that_is_paused_has_time_until_somebody_is_in_a_hurry(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STUCK_SECONDS", "DRAIN_SECONDS"):
        monkeypatch.setattr(f"tasks.held.{name}", 0.3)
    claim = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert claim is not None
    ended = threading.Event()

    with Held(
        process.database(),
        process.redis_client(),
        process.settings().jobs,
        claim,
        end_process=lambda _code: ended.set(),
    ) as held:
        held.stop(StopReason.PAUSE)
        assert not ended.wait(1.5)
        held.stop(StopReason.DRAIN)
        assert ended.wait(10)

    assert held.should_stop() is StopReason.PAUSE


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Guarded:
    """A watchdog over one child whose job hangs, and whom it has killed."""

    def __init__(self, run_id: str, pid: int) -> None:
        claim = lease.claim(process.database(), run_id, f"train-0@here:{pid}", lease_seconds=60)
        assert claim is not None
        self.claim, self.pid, self.clock = claim, pid, Clock()
        self.killed: list[tuple[int, int]] = []
        self.watchdog = Watchdog(
            process.database(),
            "train-0@here",
            kill=lambda pid, number: self.killed.append((pid, number)),
            clock=self.clock,
        )

    def lose_the_database(self) -> None:
        self.watchdog._database = Database("postgresql://nobody@127.0.0.1:1/none")

    def look(self, after: float, *, draining: bool = False) -> None:
        self.clock.now += after
        self.watchdog.look(lambda: {self.pid: self.claim.job_id}, draining=draining)


@pytest.fixture
def guarded(run_id: str, other_process: subprocess.Popen[bytes]) -> Guarded:
    return Guarded(run_id, other_process.pid)


def cancelled(run_id: str) -> None:
    lease.request_cancel(process.database(), run_id)


def reaped(run_id: str) -> None:
    lease.expire(process.database(), run_id, owner_prefix="train-0@here")
    lease.reap(process.database(), max_crashes=3)


@pytest.mark.parametrize("happens", [cancelled, reaped])
def test_a_child_that_stays_at_a_job_that_is_over_is_killed(
    guarded: Guarded, happens: Callable[[str], None]
) -> None:
    guarded.look(0)
    guarded.look(1_000)  # it works
    happens(guarded.claim.job_id)
    guarded.look(1)
    guarded.look(KILL_SECONDS)
    assert guarded.killed == []

    guarded.look(1)

    assert guarded.killed == [(guarded.pid, signal.SIGKILL)]


@pytest.fixture
def unclaimed(run_id: str, other_process: subprocess.Popen[bytes]) -> Guarded:
    """A child that has not claimed its job, and a watchdog that gives it 100 s."""
    found = Guarded(run_id, other_process.pid)
    reaped(run_id)
    found.watchdog._claim_seconds = 100.0
    return found


def test_a_child_that_hangs_after_a_job_that_was_over_between_two_looks_gets_no_such_time(
    unclaimed: Guarded,
) -> None:
    lease.request_cancel(process.database(), unclaimed.claim.job_id)
    unclaimed.look(0.0)
    unclaimed.look(KILL_SECONDS + 1)

    assert unclaimed.killed == [(unclaimed.pid, signal.SIGKILL)]


def test_a_child_that_waits_for_a_locked_database_to_claim_its_job_is_not_killed(
    unclaimed: Guarded,
) -> None:
    for after in (0.0, KILL_SECONDS + 1, KILL_SECONDS + 1):
        unclaimed.look(after)
    assert unclaimed.killed == []

    unclaimed.look(100.0)  # it hangs
    unclaimed.look(KILL_SECONDS + 1)

    assert unclaimed.killed == [(unclaimed.pid, signal.SIGKILL)]


def test_a_child_that_is_stopped_before_it_claims_its_job_is_killed(
    unclaimed: Guarded, other_process: subprocess.Popen[bytes]
) -> None:
    other_process.send_signal(signal.SIGSTOP)
    while not is_stopped(unclaimed.pid):
        time.sleep(0.01)
    for after in (0.0, KILL_SECONDS + 1):
        unclaimed.look(after)

    assert unclaimed.killed == [(unclaimed.pid, signal.SIGKILL)]


def test_a_child_that_still_waits_to_claim_its_job_when_its_worker_stops_has_time_to_leave_it(
    unclaimed: Guarded,
) -> None:
    unclaimed.look(0)
    unclaimed.look(90)
    unclaimed.look(1, draining=True)
    unclaimed.look(KILL_SECONDS, draining=True)
    assert unclaimed.killed == []

    unclaimed.look(1, draining=True)

    assert unclaimed.killed == [(unclaimed.pid, signal.SIGKILL)]


def test_a_child_that_does_not_drain_is_killed(guarded: Guarded) -> None:
    guarded.look(0, draining=True)
    guarded.look(KILL_SECONDS + 1, draining=True)

    assert guarded.killed == [(guarded.pid, signal.SIGKILL)]


def test_a_child_that_has_left_its_job_by_the_time_that_it_would_be_killed_is_not(
    guarded: Guarded,
) -> None:
    cancelled(guarded.claim.job_id)
    guarded.look(0)
    guarded.clock.now += KILL_SECONDS + 1
    asked = iter([{guarded.pid: guarded.claim.job_id}, {guarded.pid: "another job"}])

    guarded.watchdog.look(lambda: next(asked))

    assert guarded.killed == []
    assert next(asked, None) is None


def test_a_child_that_is_gone_when_it_is_to_be_killed_is_no_trouble(run_id: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    clock = Clock()
    watchdog = Watchdog(process.database(), "train-0@here", clock=clock)
    for seconds in (0.0, KILL_SECONDS + 1):
        clock.now = seconds
        watchdog.look(lambda: {gone.pid: run_id}, draining=True)


def test_a_child_that_is_stopped_past_its_lease_is_killed_though_nobody_can_say_that_it_is_over(
    guarded: Guarded, other_process: subprocess.Popen[bytes]
) -> None:
    """As one that is stopped in the middle of a write, which keeps all others from writing."""
    lease.expire(process.database(), guarded.claim.job_id, owner_prefix="train-0@here")
    for after in (0.0, KILL_SECONDS + 1):
        guarded.look(after)
    assert guarded.killed == []  # it works on while the database is locked

    other_process.send_signal(signal.SIGSTOP)
    while not is_stopped(guarded.pid):
        time.sleep(0.01)
    for after in (0.0, KILL_SECONDS + 1):
        guarded.look(after)

    assert guarded.killed == [(guarded.pid, signal.SIGKILL)]


def test_no_child_gets_more_time_because_the_database_is_away(guarded: Guarded) -> None:
    cancelled(guarded.claim.job_id)
    guarded.look(0)
    guarded.lose_the_database()

    with pytest.raises(Unavailable):
        guarded.look(KILL_SECONDS + 1)
    assert guarded.killed == [(guarded.pid, signal.SIGKILL)]


def test_a_child_that_does_not_drain_while_the_database_is_away_is_killed(
    guarded: Guarded,
) -> None:
    guarded.lose_the_database()
    for after in (1_000.0, KILL_SECONDS):
        with pytest.raises(Unavailable):
            guarded.look(after, draining=after < 1_000)  # the first look: it works
    assert guarded.killed == []
    with pytest.raises(Unavailable):
        guarded.look(KILL_SECONDS + 1, draining=True)
    assert guarded.killed == [(guarded.pid, signal.SIGKILL)]


def test_the_lease_of_a_dead_child_ends_at_once_and_that_of_a_live_one_does_not(
    run_id: str, other_process: subprocess.Popen[bytes]
) -> None:
    watchdog = Watchdog(process.database(), "train-0@here")
    owner = f"train-0@here:{other_process.pid}"
    assert lease.claim(process.database(), run_id, owner, lease_seconds=60) is not None

    watchdog.look(dict)
    assert lease.reap(process.database(), max_crashes=3) == []
    other_process.kill()
    while not lease.reap(process.database(), max_crashes=3):  # a zombie, then gone
        watchdog.look(dict)
    other_process.wait()

    assert runs.get(process.database(), run_id).status == "queued"
    claim = lease.claim(process.database(), run_id, owner, lease_seconds=60)
    assert claim is not None
    watchdog.look(dict)

    assert len(lease.reap(process.database(), max_crashes=3)) == 1
