"""Workers and housekeeping that slept, or that the database has left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import process
from tasks.held import Held, draining
from tasks.perform import perform
from tasks.shells import work_of
from tasks.sleep import lasting_clock
from tests.reports import evaluation, step
from tests.tasks.tiny_runs import QueueRun
from trainer_app.chat_sessions import ChatSessions
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.json_spec import JsonSpec
from trainer_app.core.observer import (
    CheckpointReport,
    Observers,
    Silent,
    StopReason,
)
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import Unavailable
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, JobKind
from trainer_app.store.runs import Run

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
LEASE_SECONDS = 0.2


@pytest.fixture
def claim(worker: Settings) -> Claim:
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    claim = lease.claim(process.database(), run_id, "train-0@here:1", lease_seconds=60)
    assert claim is not None
    return claim


def asleep(claim: Claim) -> Held:
    """A job's lease without the thread that keeps it, as in a process that is stopped."""
    jobs = replace(process.settings().jobs, lease_seconds=LEASE_SECONDS)
    return Held(process.database(), process.redis_client(), jobs, claim)


class Sleeper:
    """A job's lease while the database is away, in a process that sleeps when a test says so."""

    def __init__(self, claim: Claim) -> None:
        self.now = 0.0
        self.held = Held(
            Database("postgresql://nobody@127.0.0.1:1/none"),
            process.redis_client(),
            process.settings().jobs,
            claim,
            clock=lambda: self.now,
        )
        self.answers: list[StopReason | None] = []
        self._asking = threading.Thread(target=self._ask, daemon=True)

    def wake_and_ask(self) -> None:
        self._asking.start()

    def waits(self) -> bool:
        """Whether it asks in vain for a while."""
        self._asking.join(1.5)
        return self._asking.is_alive()

    def give_the_database_back(self) -> None:
        self.held._database = process.database()

    def answer(self) -> StopReason | None:
        self._asking.join(30)
        (answer,) = self.answers
        return answer

    def is_seen_awake(self) -> bool:
        return self.held._sleep._awake_at[0] == self.now

    def _ask(self) -> None:
        self.answers.append(self.held.should_stop())


def lose(claim: Claim) -> None:
    lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")
    assert lease.reap(process.database(), max_crashes=3)


def test_who_slept_and_lost_the_lease_stops_before_the_next_step(claim: Claim) -> None:
    held = asleep(claim)
    lose(claim)

    time.sleep(LEASE_SECONDS)

    assert held.should_stop() is StopReason.FENCED


def test_nobody_hears_more_of_an_attempt_that_lost_its_lease(claim: Claim) -> None:
    held = asleep(claim)
    heard: list[str] = []

    class Listener(Silent):
        def on_message(self, message: str) -> None:
            heard.append(message)

        def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
            heard.append(checkpoint.path.name)

    observer = Observers([held, Listener()])
    observer.on_message("training")
    lose(claim)
    time.sleep(LEASE_SECONDS)
    checkpoint = CheckpointReport(path=Path("step-1"), step=1, seconds=1.0)
    news: list[Callable[[], None]] = [
        lambda: observer.on_message("saving the model"),
        lambda: observer.on_steps([step(1)]),
        lambda: observer.on_evaluation(evaluation(1)),
        lambda: observer.on_checkpoint(checkpoint),
        held.confirm,
    ]
    for tell in news:
        with pytest.raises(StopRequested):
            tell()

    assert heard == ["training"]


def test_who_slept_and_still_has_the_lease_goes_on(claim: Claim) -> None:
    held = asleep(claim)

    time.sleep(LEASE_SECONDS)

    assert held.should_stop() is None


def test_who_slept_for_less_than_the_lease_and_finds_no_database_goes_on(claim: Claim) -> None:
    sleeper = Sleeper(claim)

    sleeper.now += 0.9 * process.settings().jobs.lease_seconds
    sleeper.wake_and_ask()

    assert sleeper.answer() is None


@pytest.mark.parametrize("lost", [False, True])
def test_who_slept_for_longer_than_the_lease_waits_for_the_database_to_say_who_has_it(
    claim: Claim, lost: bool
) -> None:
    sleeper = Sleeper(claim)
    sleeper.now += 1.1 * process.settings().jobs.lease_seconds

    sleeper.wake_and_ask()
    assert sleeper.waits()
    if lost:
        lose(claim)
    sleeper.give_the_database_back()

    assert sleeper.answer() is (StopReason.FENCED if lost else None)
    assert sleeper.held.should_stop() is sleeper.answer()


def test_who_waits_for_the_database_after_a_sleep_and_is_to_stop_writes_nothing(
    claim: Claim,
) -> None:
    sleeper = Sleeper(claim)
    sleeper.now += 1.1 * process.settings().jobs.lease_seconds

    sleeper.wake_and_ask()
    assert sleeper.waits()
    sleeper.held.stop(StopReason.DRAIN)

    assert sleeper.answer() is StopReason.FENCED


def test_a_step_of_any_length_is_no_sleep(claim: Claim) -> None:
    sleeper = Sleeper(claim)
    with sleeper.held:  # whose thread goes on meanwhile
        for _ in range(3):
            sleeper.now += 0.9 * process.settings().jobs.lease_seconds
            give_up_at = time.monotonic() + 60
            while not sleeper.is_seen_awake():
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
        sleeper.wake_and_ask()

        assert sleeper.answer() is None


def test_a_job_says_when_the_database_is_away_and_when_it_is_back(
    claim: Claim, lock_database: Callable[[Callable[[], object]], None]
) -> None:
    said: list[str] = []
    jobs = replace(process.settings().jobs, beat_seconds=0.1)

    def until_said(words: str) -> None:
        give_up_at = time.monotonic() + 30
        while not any(words in one for one in said) and time.monotonic() < give_up_at:
            time.sleep(0.02)

    lock_database(lambda: until_said("is away"))
    with Held(process.database(), process.redis_client(), jobs, claim, say=said.append) as held:
        until_said("is back")

        assert held.should_stop() is None

    assert said[0] == "the database is away: the work goes on"
    assert said[1].startswith("the database is back after ")


def test_who_slept_with_the_whole_machine_asks_too(claim: Claim) -> None:
    slept = 0.0
    jobs = replace(process.settings().jobs, lease_seconds=LEASE_SECONDS)
    held = Held(
        process.database(), process.redis_client(), jobs, claim, lasting_clock=lambda: slept
    )
    lose(claim)

    slept = 10 * LEASE_SECONDS

    assert held.should_stop() is StopReason.FENCED


def test_the_lasting_clock_goes_on() -> None:
    before = lasting_clock()
    time.sleep(0.05)
    assert 0.05 <= lasting_clock() - before < 5


@pytest.fixture
def base_id(queue_run: QueueRun) -> str:
    """A finished model, which other jobs read."""
    run_id = queue_run(holdout_fraction=0.1)
    perform(run_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))
    return run_id


def test_a_database_that_is_away_whenever_a_fine_tuning_asks_for_its_base_costs_no_attempt(
    base_id: str, queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_id = queue_run(pretrained_run_id=base_id)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "get", away_every_other_time())
        perform(tuned_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))
    tuned = runs.get(process.database(), tuned_id)
    assert (tuned.status, tuned.attempt) == ("completed", 1), tuned.message


@pytest.mark.parametrize("kind", [JobKind.GENERATE, JobKind.SCORE, JobKind.CHAT, JobKind.EVALUATE])
def test_a_database_that_is_away_whenever_a_request_asks_for_its_run_costs_it_no_attempt(
    base_id: str, monkeypatch: pytest.MonkeyPatch, kind: JobKind
) -> None:
    session_id = ChatSessions(process.redis_client()).begin(base_id).session_id
    specs: dict[JobKind, JsonSpec] = {
        JobKind.GENERATE: GenerateSpec(prompt_text="line", max_new_tokens=2),
        JobKind.SCORE: ScoreSpec(text="line 1"),
        JobKind.CHAT: ChatSpec(session_id=session_id, message="line", max_new_tokens=2),
        JobKind.EVALUATE: EvaluateSpec(),
    }
    spec = specs[kind].to_json()
    asked = requests.create(process.database(), kind, base_id, spec, queue="q", user_id=0)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "get", away_every_other_time())
        perform(asked.request_id, hostname="inference-0@here", work=work_of(kind))
    done = requests.get(process.database(), kind, base_id, asked.request_id)
    assert done.status == "completed", done.message


def away_every_other_time() -> Callable[[Database, str], Run]:
    """A database that is away when it is asked for a run, and back when it is asked again."""
    get, away = runs.get, [False]

    def ask(database: Database, run_id: str) -> Run:
        away[0] = not away[0]
        if away[0]:
            raise Unavailable("the database is away or busy")
        return get(database, run_id)

    return ask


def test_who_waits_for_a_database_and_is_to_stop_leaves_the_job_to_another(
    base_id: str, queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stay_away(*_: object) -> None:
        draining.set()
        raise Unavailable("the database is away or busy")

    tuned_id = queue_run(pretrained_run_id=base_id)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "get", stay_away)
        perform(tuned_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))
    tuned = runs.get(process.database(), tuned_id)
    assert (tuned.status, tuned.message) == ("queued", "handed back: its worker shuts down")


def test_who_cannot_even_open_a_database_does_not_wait_for_it(
    base_id: str, queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stay_away(*_: object) -> None:
        patched.setattr("os.devnull", "/proc/self/fd/1000000")
        raise Unavailable("the database cannot be opened")

    tuned_id = queue_run(pretrained_run_id=base_id)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "get", stay_away)
        perform(tuned_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))
        assert process.spent.is_set()
    tuned = runs.get(process.database(), tuned_id)
    assert tuned.status == "queued"
    assert str(tuned.message).startswith("attempt 1 failed: the database cannot be opened")
