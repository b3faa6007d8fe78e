"""Workers and housekeeping that slept, or that the database has left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tasks import process
from tasks.held import Held
from tasks.housekeeping import Reaper
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.lease import Claim

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


def lose(claim: Claim) -> None:
    lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")
    assert lease.reap(process.database(), max_crashes=3)


def test_who_slept_and_lost_the_lease_stops_before_the_next_step(claim: Claim) -> None:
    held = asleep(claim)
    lose(claim)

    time.sleep(LEASE_SECONDS)

    assert held.should_stop() is StopReason.FENCED


def test_who_slept_and_still_has_the_lease_goes_on(claim: Claim) -> None:
    held = asleep(claim)

    time.sleep(LEASE_SECONDS)

    assert held.should_stop() is None


def test_who_slept_and_finds_no_database_goes_on(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    process.settings.cache_clear()
    process.database.cache_clear()
    held = asleep(claim)

    time.sleep(LEASE_SECONDS)

    assert held.should_stop() is None


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


def test_after_an_outage_workers_may_renew_their_leases_before_anything_is_reaped(
    claim: Claim,
) -> None:
    now = [0.0]
    reaper = Reaper(lambda: now[0])

    def status_after_pass_at(seconds: float) -> str:
        now[0] = seconds
        reaper.one_pass()
        return runs.get(process.database(), claim.job_id).status

    assert status_after_pass_at(0) == "running"
    lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")
    waited = [status_after_pass_at(300 + 2 * number) for number in range(7)]

    assert waited == ["running"] * 6 + ["queued"]  # a beat every 10 s


def test_a_lease_that_is_over_when_housekeeping_starts_is_ended_at_once(claim: Claim) -> None:
    lease.expire(process.database(), claim.job_id, owner_prefix="train-0@here")

    Reaper().one_pass()

    assert runs.get(process.database(), claim.job_id).status == "queued"
