"""A cancellation that is announced in Redis when its run goes on again, and one set by hand then.

Whoever cancels may be stopped between the two: the row that says so, and the announcement.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tasks import by_hand, process
from tasks.job import Done, Job
from tasks.perform import perform
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, runs
from trainer_app.wishes import Wish, cancelled_key, keys

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer").run_id


def cancel(run_id: str) -> Wish:
    """Cancel it in the database; what is to be announced."""
    asked: list[int] = []
    lease.request_cancel(process.database(), run_id, on_asked=asked.append)
    (attempt,) = asked
    return Wish(up_to=attempt)


def cancel_while_it_runs(run_id: str) -> Wish:
    meant: list[Wish] = []

    def work(job: Job) -> StopReason:
        meant.append(cancel(run_id))
        return StopReason.CANCEL

    perform(run_id, hostname="train-0@here", work=work)
    assert runs.get(process.database(), run_id).status == "cancelled"
    return meant[0]


def announce(run_id: str, wish: Wish) -> None:
    process.queue().announce_cancel(run_id, wish)


def set_by_hand(run_id: str, _wish: Wish) -> None:
    process.redis_client().set(cancelled_key(run_id), "1")


def is_forgotten(run_id: str) -> bool:
    return not process.redis_client().exists(*keys(run_id))


def stands(run_id: str) -> tuple[str, int, bool]:
    run = runs.get(process.database(), run_id)
    return run.status, run.attempt, run.paused


@pytest.mark.parametrize("attempts", [0, 1])
@pytest.mark.parametrize("paused", [False, True])
def test_a_late_announcement_does_not_cancel_what_waits_again(
    run_id: str, attempts: int, paused: bool
) -> None:
    wish = cancel_while_it_runs(run_id) if attempts else cancel(run_id)
    pauses.resume(process.database(), run_id)
    if paused:
        pauses.pause(process.database(), run_id)

    announce(run_id, wish)
    by_hand.heed_queued()

    assert stands(run_id) == ("queued", attempts, paused)
    assert is_forgotten(run_id)


@pytest.mark.parametrize("paused", [False, True])
def test_what_waits_again_is_cancelled_by_hand_all_the_same(run_id: str, paused: bool) -> None:
    wish = cancel_while_it_runs(run_id)
    pauses.resume(process.database(), run_id)
    if paused:
        pauses.pause(process.database(), run_id)

    set_by_hand(run_id, wish)
    by_hand.heed_queued()

    assert stands(run_id) == ("cancelled", 1, False)
    assert is_forgotten(run_id)


def test_a_late_announcement_keeps_no_worker_from_a_run_that_goes_on_again(run_id: str) -> None:
    wish = cancel_while_it_runs(run_id)
    pauses.resume(process.database(), run_id)
    announce(run_id, wish)

    perform(run_id, hostname="train-0@here", work=lambda _: Done(result="{}", result_id=run_id))

    assert stands(run_id) == ("completed", 2, False)
    assert is_forgotten(run_id)


@pytest.mark.parametrize(
    ("ask", "heard"), [(announce, None), (set_by_hand, StopReason.CANCEL)], ids=["late", "by hand"]
)
def test_what_runs_again_is_cancelled_by_hand_but_by_no_late_announcement(
    run_id: str, ask: Callable[[str, Wish], None], heard: StopReason | None
) -> None:
    wish = cancel_while_it_runs(run_id)
    pauses.resume(process.database(), run_id)
    stopped: list[StopReason | None] = []

    def work(job: Job) -> Done | StopReason:
        ask(run_id, wish)
        give_up_at = time.monotonic() + 20
        while not is_forgotten(run_id) and job.held.should_stop() is None:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        stopped.append(job.held.should_stop())
        return stopped[0] or Done(result="{}", result_id=run_id)

    perform(run_id, hostname="train-0@here", work=work)

    assert stopped == [heard]
    assert stands(run_id)[:2] == ("completed" if heard is None else "cancelled", 2)
    assert is_forgotten(run_id)


def test_an_announcement_of_the_attempt_that_runs_is_heard(run_id: str) -> None:
    def work(job: Job) -> StopReason:
        announce(run_id, Wish(up_to=job.claim.attempt))
        give_up_at = time.monotonic() + 20
        while (reason := job.held.should_stop()) is None:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        return reason

    perform(run_id, hostname="train-0@here", work=work)

    assert stands(run_id) == ("cancelled", 1, False)
    assert is_forgotten(run_id)
