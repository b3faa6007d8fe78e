"""What housekeeping makes of leases that are over after outages, and after clocks were set."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import update

from tasks import housekeeping, process
from tasks.housekeeping import Reaper
from tests.database_clock import SetClock
from tests.tasks.claims import claimed
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import Unavailable
from trainer_app.queue import heartbeat_key
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim
from trainer_app.store.tables import JobRow

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
DAY = 86_400.0


class Passes:
    """A reaper, a run, and the clocks of the reaper's machine and of the database."""

    def __init__(self, claim: Claim, clock: SetClock) -> None:
        self._claim = claim
        self.run_id = claim.job_id
        self._clock = clock
        self._began_at = clock.now
        self._now = 0.0
        self._jumped = 0.0  # seconds, the database's clock
        self._reaper = Reaper(lambda: self._now)

    def end_lease(self) -> None:
        """Nobody has renewed it, and its time is over."""
        with process.database().write() as connection:
            connection.execute(update(JobRow).values(lease_until=1.0))

    def beat(self) -> None:
        seconds = process.settings().jobs.lease_seconds
        lease.beat(process.database(), self._claim, lease_seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the database's clock."""
        self._jumped += seconds
        self._set(self._now)

    def start_anew(self) -> None:
        """Another housekeeper takes the place of this one."""
        self._reaper = Reaper(lambda: self._now)

    def at(self, seconds: float) -> str:
        """Where the run stands after a pass at that time, by the machine's clock."""
        self._set(seconds)
        self._reaper.one_pass()
        return runs.get(process.database(), self.run_id).status

    def _set(self, seconds: float) -> None:
        self._now = seconds
        self._clock.now = self._began_at + seconds + self._jumped

    def in_vain_at(self, seconds: float, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
        """A pass that the database does not answer."""
        with (
            closing(Database(database, wait_seconds=0.05)) as away,
            monkeypatch.context() as patch,
        ):
            patch.setattr(process, "database", lambda: away)
            self._set(seconds)
            with pytest.raises(Unavailable):
                self._reaper.one_pass()


NOWHERE = "sqlite:////no/such/folder/trainer.db"


@pytest.fixture
def passes(worker: Settings) -> Passes:
    clock = SetClock(process.database())
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    return Passes(claimed(run_id, "train-0@here:1"), clock)


def test_after_an_outage_workers_may_renew_their_leases_before_anything_is_reaped(
    passes: Passes,
) -> None:
    assert passes.at(0) == "running"
    passes.end_lease()
    waited = [passes.at(300 + 2 * number) for number in range(9)]

    assert waited == ["running"] * 8 + ["queued"]  # a beat every 10 s


def test_after_a_time_without_writing_workers_may_renew_their_leases_before_anything_is_reaped(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = process.settings().database_url
    passes.end_lease()
    with closing(sqlite3.connect(str(Database(url).file), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        passes.in_vain_at(0, monkeypatch, url)

    waited = [passes.at(seconds) for seconds in range(2, 20, 2)]

    assert waited == ["running"] * 8 + ["queued"]  # a beat every 10 s


@pytest.mark.parametrize("every", [11.0, 25.0])
def test_passes_that_a_slow_database_makes_long_miss_no_dead_worker(
    passes: Passes, every: float
) -> None:
    assert passes.at(0) == "running"
    passes.end_lease()

    assert passes.at(every) == "queued"


def test_a_moment_without_an_answer_puts_no_lost_worker_off(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.at(0)
    passes.end_lease()
    passes.in_vain_at(2, monkeypatch, NOWHERE)

    assert passes.at(4) == "queued"


def test_housekeeping_that_was_started_in_an_outage_lets_workers_renew_their_leases_first(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.end_lease()
    passes.in_vain_at(0, monkeypatch, NOWHERE)

    waited = [passes.at(seconds) for seconds in range(2, 20, 2)]

    assert waited == ["running"] * 8 + ["queued"]  # a beat every 10 s


@pytest.mark.parametrize("seconds", [DAY, 70.0])
def test_a_clock_of_the_database_that_jumps_ahead_ends_no_attempt_whose_worker_lives(
    passes: Passes, seconds: float
) -> None:
    assert [passes.at(0), passes.at(2)] == ["running"] * 2
    passes.jump(seconds)
    assert [passes.at(later) for later in range(4, 12, 2)] == ["running"] * 4
    passes.beat()  # 10 s after the last one

    assert [passes.at(later) for later in range(12, 70, 2)] == ["running"] * 29


def test_a_jump_of_a_few_seconds_ends_no_short_lease(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__LEASE_SEC", "10")
    process.settings.cache_clear()
    passes.beat()
    passes.at(0)
    passes.jump(9.5)
    assert passes.at(1) == "running"
    passes.beat()

    assert [passes.at(later) for later in range(3, 11, 2)] == ["running"] * 4


def test_a_clock_of_the_database_that_jumps_during_a_pass_ends_no_attempt_whose_worker_lives(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.at(0)
    reap = housekeeping.reap

    def jump_and_reap(**as_of: float) -> None:
        passes.jump(DAY)
        reap(**as_of)

    with monkeypatch.context() as patch:
        patch.setattr(housekeeping, "reap", jump_and_reap)
        assert passes.at(2) == "running"
    assert passes.at(4) == "running"


def test_a_dead_worker_is_missed_a_beat_after_the_database_s_clock_jumped_ahead(
    passes: Passes,
) -> None:
    passes.at(0)
    passes.jump(DAY)

    waited = [passes.at(later) for later in range(2, 20, 2)]

    assert waited == ["running"] * 8 + ["queued"]  # a beat every 10 s


def test_a_dead_worker_is_missed_a_lease_after_the_database_s_clock_was_set_back(
    passes: Passes,
) -> None:
    passes.at(0)
    passes.jump(-DAY)

    waited = [passes.at(later) for later in range(2, 66, 2)]

    assert waited[:29] == ["running"] * 29  # a lease of 60 s
    assert waited[-1] == "queued"


def test_a_process_that_is_known_to_be_dead_gets_no_time_to_come_back(passes: Passes) -> None:
    dead = runs.create(process.database(), SPEC, queue="trainer").run_id
    claimed(dead, "train-1@here:2")
    passes.at(0)
    lease.expire(process.database(), dead, owner_prefix="train-1@here")
    passes.jump(DAY)

    assert passes.at(2) == "running"
    assert runs.get(process.database(), dead).status == "queued"


def test_a_housekeeper_that_stood_still_alone_costs_a_lost_worker_a_beat(passes: Passes) -> None:
    passes.at(0)
    passes.end_lease()

    waited = [passes.at(later) for later in range(100, 118, 2)]

    assert waited == ["running"] * 8 + ["queued"]  # the workers may have stood still with it


def test_an_answer_that_takes_long_is_no_jump(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.at(0)
    passes.end_lease()
    now = Database.now

    def late(database: Database) -> float:
        passes._set(passes._now + 5)
        return now(database)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "now", late)

        assert passes.at(2) == "queued"


def test_a_clock_that_ran_ahead_and_was_put_right_keeps_no_lost_worker_alive(
    passes: Passes,
) -> None:
    passes.at(0)
    passes.jump(DAY)
    passes.at(2)
    passes.end_lease()
    passes.jump(-DAY)

    waited = [passes.at(later) for later in range(4, 22, 2)]

    assert waited == ["running"] * 8 + ["queued"]  # a beat every 10 s


def test_a_lease_that_is_over_when_housekeeping_starts_is_ended_at_once(passes: Passes) -> None:
    passes.end_lease()

    assert passes.at(0) == "queued"


def test_a_clock_that_jumped_before_housekeeping_started_ends_no_attempt_that_redis_has_heard_of(
    passes: Passes,
) -> None:
    passes.at(0)
    passes.jump(DAY)
    passes.start_anew()
    process.redis_client().set(heartbeat_key(passes.run_id), "1", ex=60)
    assert passes.at(2) == "running"
    passes.beat()

    assert [passes.at(later) for later in range(4, 30, 2)] == ["running"] * 13


def test_without_redis_housekeeping_starts_as_if_nobody_were_heard_of(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.end_lease()
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()
    process.redis_client.cache_clear()

    assert passes.at(0) == "queued"
