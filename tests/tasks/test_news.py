"""What the holder of a job learns through Redis of the attempts after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tasks import process
from tasks.held import Held
from tasks.news import News
from tests.tasks.claims import claimed
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.queue import attempt_key, heartbeat_key
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim
from trainer_app.wishes import Wish, cancelled_key

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def claim(worker: Settings) -> Claim:
    return claimed(runs.create(process.database(), SPEC, queue="trainer").run_id, "here:1")


@pytest.fixture
def cut_off() -> Iterator[Database]:
    """The database as one process sees it that does not reach it."""
    with closing(Database("postgresql://nobody@127.0.0.1:1/none")) as database:
        yield database


def taken_over(claim: Claim) -> Claim:
    """The next attempt, once the lease of this one is over."""
    lease.expire(process.database(), claim.job_id, owner_prefix=claim.owner)
    assert lease.reap(process.database(), max_crashes=3)
    return claimed(claim.job_id, "elsewhere:2")


def held(
    claim: Claim, database: Database | None = None, *, lease_seconds: float | None = None
) -> Held:
    jobs = process.settings().jobs
    jobs = replace(jobs, lease_seconds=lease_seconds or jobs.lease_seconds)
    return Held(database or process.database(), process.redis_client(), jobs, claim)


def news_of(claim: Claim) -> News:
    return News(process.redis_client(), claim, lease_seconds=60)


def told(claim: Claim) -> str | None:
    there = process.redis_client().get(attempt_key(claim.job_id))
    return None if there is None else str(there)


def soon(is_so: Callable[[], bool]) -> bool:
    give_up_at = time.monotonic() + 20
    while not is_so() and time.monotonic() < give_up_at:
        time.sleep(0.05)
    return is_so()


def test_a_run_that_is_resumed_while_its_cancellation_is_being_heeded_runs_on(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, taken = lease.cancel, list[Wish | None]()

    def cancel_once_it_is_resumed(
        database: Database, cancelled: Claim, **more: Callable[[], None]
    ) -> None:
        forget = process.queue().forget_cancel
        pauses.resume(database, claim.job_id, before=lambda: taken.append(forget(claim.job_id)))
        cancel(database, cancelled, **more)

    monkeypatch.setattr(lease, "cancel", cancel_once_it_is_resumed)
    pauses.pause(process.database(), claim.job_id)
    process.redis_client().set(cancelled_key(claim.job_id), "1")
    with held(claim) as first:
        assert soon(lambda: bool(taken))

    assert taken == [Wish()]
    assert first.should_stop() is not StopReason.CANCEL
    run = runs.get(process.database(), claim.job_id)
    assert (run.status, run.paused, run.cancel_requested) == ("running", False, False)


def test_who_is_cut_off_from_the_database_alone_stops_once_another_attempt_has_begun(
    claim: Claim, cut_off: Database
) -> None:
    with held(claim, cut_off, lease_seconds=3) as first:
        assert soon(lambda: told(claim) == "1")
        later = taken_over(claim)
        assert first.should_stop() is None
        with held(later) as second:
            assert soon(lambda: first.should_stop() is StopReason.FENCED)
            assert second.should_stop() is None

    assert told(claim) == "2"


def test_who_is_cut_off_from_the_database_alone_works_on_where_nobody_takes_its_place(
    claim: Claim, cut_off: Database
) -> None:
    with held(claim, cut_off) as first:
        lease.expire(process.database(), claim.job_id, owner_prefix=claim.owner)
        assert lease.reap(process.database(), max_crashes=3)
        time.sleep(1.5)

        assert first.should_stop() is None


def test_before_its_lease_can_be_over_no_number_in_redis_ends_an_attempt(
    claim: Claim, cut_off: Database
) -> None:
    process.redis_client().set(attempt_key(claim.job_id), "999999")
    with held(claim, cut_off) as first:
        time.sleep(1.5)

        assert first.should_stop() is None


def test_a_broker_that_was_wiped_learns_again_which_attempt_is_the_newest(
    claim: Claim, cut_off: Database
) -> None:
    later = taken_over(claim)
    with held(later) as second:
        assert soon(lambda: told(claim) == "2")
        process.redis_client().flushall()
        with held(claim, cut_off, lease_seconds=3) as first:
            assert soon(lambda: first.should_stop() is StopReason.FENCED)
            assert soon(lambda: told(claim) == "2")
            assert second.should_stop() is None


def test_a_lower_number_that_was_there_first_gives_way(claim: Claim) -> None:
    news_of(claim).exchange()

    assert news_of(taken_over(claim)).exchange().later_attempt is None
    assert told(claim) == "2"
    assert news_of(claim).exchange().later_attempt == 2
    assert told(claim) == "2"


def test_the_database_is_believed_when_it_knows_of_no_later_attempt(claim: Claim) -> None:
    process.redis_client().set(attempt_key(claim.job_id), "7")

    with held(claim) as first:
        assert soon(lambda: told(claim) == "1")
        assert first.should_stop() is None


def test_a_later_attempt_that_the_database_confirms_ends_this_one(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.held._LOOK_SECONDS", 600.0)  # the row itself is not looked at
    with held(claim) as first:
        assert soon(lambda: told(claim) == "1")
        with held(taken_over(claim)):
            assert soon(lambda: first.should_stop() is StopReason.FENCED)


@pytest.mark.parametrize("value", ["", "seven", "-2", "2.5", "0x7", "inf", "9" * 20, b"\xff\xfe"])
def test_what_is_no_number_of_an_attempt_is_overwritten(claim: Claim, value: str | bytes) -> None:
    process.redis_client().set(attempt_key(claim.job_id), value)

    assert news_of(claim).exchange().later_attempt is None

    assert told(claim) == "1"


def test_what_is_no_value_at_all_is_overwritten(claim: Claim) -> None:
    process.redis_client().rpush(attempt_key(claim.job_id), "7")

    assert news_of(claim).exchange().later_attempt is None

    assert told(claim) == "1"


def test_who_ends_takes_nothing_from_a_later_attempt(claim: Claim) -> None:
    slow = news_of(claim)
    slow.exchange()
    next_one = news_of(taken_over(claim))
    next_one.exchange()

    slow.end(is_over=True)
    assert process.redis_client().get(heartbeat_key(claim.job_id)) is not None
    assert told(claim) == "2"

    next_one.end(is_over=True)
    assert process.redis_client().get(heartbeat_key(claim.job_id)) is None
    assert told(claim) == "2"  # for whoever has not seen it yet, for as long as a lease lasts
    assert process.redis_client().ttl(attempt_key(claim.job_id)) > 0
