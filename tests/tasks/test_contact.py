"""Who can learn from nobody whose a job is, and has a lease that may be over, waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tasks import process, training
from tasks.contact import Contact
from tasks.held import Held, draining
from tasks.perform import perform
from tests.slow_proxy import SlowProxy, slow_proxy
from tests.tasks.claims import claimed
from tests.tasks.test_news import SPEC, held, soon, taken_over, told
from tests.tasks.tiny_runs import ENDLESS, QueueRun
from trainer_app import events
from trainer_app.core.observer import StopReason
from trainer_app.log import job_log_path
from trainer_app.settings import Settings
from trainer_app.store import runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim

LEASE_SECONDS = 2.0
WAITS = "neither the database nor Redis answers, and the lease ends: the work waits"
NOBODY = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture
def claim(worker: Settings) -> Claim:
    return claimed(runs.create(process.database(), SPEC, queue="trainer").run_id, "here:1")


@pytest.fixture
def way(worker: Settings) -> Iterator[SlowProxy]:
    """The one to Redis."""
    url = urlsplit(worker.redis.url)
    there = (url.hostname or "", url.port or 0)
    with slow_proxy(lambda: socket.create_connection(there)) as proxy:
        yield proxy


class Worker:
    """A job's holder, and its loop, which asks whether to go on."""

    def __init__(self, claim: Claim, way: SlowProxy, lease_seconds: float = LEASE_SECONDS) -> None:
        settings = process.settings()
        redis_url = f"redis://127.0.0.1:{way.port}/0"
        settings = replace(settings, redis=replace(settings.redis, url=redis_url))
        jobs = replace(settings.jobs, lease_seconds=lease_seconds, beat_seconds=0.2)
        self.said: list[str] = []
        self.held = Held(
            process.database(), events.connect(settings), jobs, claim, say=self.said.append
        )
        self.steps = 0
        self.stepped_at = 0.0
        self.reason: StopReason | None = None
        self._loop = threading.Thread(target=self._work)
        self._way = way

    def _work(self) -> None:
        while (reason := self.held.should_stop()) is None:
            self.steps += 1
            time.sleep(0.02)
            self.stepped_at = time.monotonic()
        self.reason = reason

    def lose_the_database(self, url: str = NOBODY) -> None:
        self.held._database = Database(url)

    def find_the_database(self) -> None:
        self.held._database = process.database()

    def stands_still(self) -> bool:
        before = self.steps
        time.sleep(0.5)
        return self.steps == before

    def ends(self) -> StopReason | None:
        self._loop.join(10)
        return self.reason

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self.held:
            self._loop.start()
            assert soon(lambda: self.steps > 0)
            yield
            self.held.stop(StopReason.CANCEL)
            self._loop.join(30)


@pytest.fixture
def cut_off(claim: Claim, way: SlowProxy) -> Iterator[Worker]:
    """One that waits."""
    worker = Worker(claim, way)
    with worker.at_work():
        worker.lose_the_database()
        way.cut_off()
        assert soon(lambda: worker.held.is_cut_off)
        time.sleep(0.1)  # for the step that was under way
        assert worker.stands_still()
        yield worker


def test_who_hears_nobody_waits_once_its_lease_is_over_and_goes_on_when_the_database_says_so(
    cut_off: Worker,
) -> None:
    assert cut_off.said[-1] == WAITS
    cut_off.find_the_database()

    assert soon(lambda: not cut_off.stands_still())
    assert cut_off.said.count(WAITS) == 1
    assert cut_off.said[-1].startswith("an answer came: the work goes on after ")


def test_who_hears_nobody_goes_on_when_redis_knows_of_no_later_attempt(
    cut_off: Worker, way: SlowProxy
) -> None:
    way.join()

    assert soon(lambda: not cut_off.stands_still())
    assert cut_off.said[-1].startswith("an answer came: the work goes on after ")


@pytest.mark.parametrize("from_whom", ["the database", "Redis"])
def test_who_hears_after_a_wait_that_another_attempt_has_begun_takes_no_further_step(
    cut_off: Worker, claim: Claim, way: SlowProxy, from_whom: str
) -> None:
    with held(taken_over(claim)) as second:
        before = cut_off.steps
        assert soon(lambda: told(claim) == str(claim.attempt + 1))
        if from_whom == "Redis":
            way.join()
        else:
            cut_off.find_the_database()

        assert cut_off.ends() is StopReason.FENCED
        assert cut_off.steps == before
        assert second.should_stop() is None
    assert cut_off.said[-1] == WAITS  # the log is the other's


def test_before_its_lease_can_be_over_nobody_waits(claim: Claim, way: SlowProxy) -> None:
    worker = Worker(claim, way, lease_seconds=60)
    with worker.at_work():
        worker.lose_the_database()
        way.cut_off()
        time.sleep(LEASE_SECONDS + 1)

        assert not worker.stands_still()


@pytest.mark.parametrize("hangs", [False, True])
def test_who_is_cut_off_from_both_at_once_has_ended_its_step_before_another_attempt_can_begin(
    claim: Claim, way: SlowProxy, hangs: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        worker = Worker(claim, way, lease_seconds=6)
        with worker.at_work():
            worker.lose_the_database(
                f"postgresql://nobody@127.0.0.1:{port}/none" if hangs else NOBODY
            )
            way.cut_off()
            assert soon(lambda: worker.held.is_cut_off)
            time.sleep(0.1)  # for the step that was under way
            assert worker.stands_still()

            assert 4 < worker.stepped_at - worker.held._contact.beaten_at < 6


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], 10),
        ([3.0], 10),
        ([25.0], 25),
        ([25.0, *[1.0] * 599], 25),
        ([25.0, *[1.0] * 601], 10),
        ([3_600.0], 60),
    ],
)
def test_as_much_of_the_lease_is_left_for_a_step_as_steps_took_lately(
    steps: list[float], left: float
) -> None:
    said: list[str] = []
    contact = Contact(since=0.0, lease_seconds=60, say=said.append)
    contact.database_answers = contact.redis_answers = False
    now = 0.0
    for seconds in steps:
        now += seconds
        contact.stepped(now, seconds)

    lost = []
    for now in (60 - left - 0.01, 60 - left + 0.01):
        contact.look(now, silent=False)
        lost.append(contact.is_lost)

    assert lost == [False, True]
    assert said == [WAITS]


def test_a_step_is_as_long_as_it_was_until_it_was_reported(claim: Claim, way: SlowProxy) -> None:
    now = time.monotonic()
    jobs = process.settings().jobs
    with Held(process.database(), process.redis_client(), jobs, claim, clock=lambda: now) as holder:
        contact = holder._contact
        assert holder.should_stop() is None
        now += 25
        holder.on_steps([])
        assert holder.should_stop() is None

        assert contact.step_seconds == 25


def test_what_fails_for_no_known_reason_ends_not_the_thread_that_concludes(
    claim: Claim, way: SlowProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    look = Contact.look

    def once(contact: Contact, now: float, *, silent: bool) -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("nobody thought of this")
        look(contact, now, silent=silent)

    monkeypatch.setattr(Contact, "look", once)
    worker = Worker(claim, way)
    with worker.at_work():
        assert failed.wait(10)
        worker.lose_the_database()
        way.cut_off()

        assert soon(lambda: worker.held.is_cut_off)


@pytest.mark.parametrize("lost", ["the database", "Redis"])
def test_who_hears_one_of_both_works_on(claim: Claim, way: SlowProxy, lost: str) -> None:
    worker = Worker(claim, way)
    with worker.at_work():
        if lost == "Redis":
            way.cut_off()
        else:
            worker.lose_the_database()
        time.sleep(LEASE_SECONDS + 1)

        assert not worker.stands_still()
    assert WAITS not in worker.said


@pytest.mark.parametrize("reason", [StopReason.DRAIN, StopReason.CANCEL])
def test_who_waits_heeds_a_stop_at_once(cut_off: Worker, reason: StopReason) -> None:
    asked_at = time.monotonic()
    if reason is StopReason.DRAIN:
        draining.set()
    else:
        cut_off.held.stop(reason)

    assert cut_off.ends() is reason
    assert time.monotonic() - asked_at < 5


def test_what_is_being_written_while_its_job_waits_is_finished(cut_off: Worker) -> None:
    asked_at = time.monotonic()
    cut_off.held.confirm()

    assert time.monotonic() - asked_at < 5


def test_a_run_keeps_a_checkpoint_before_it_waits_and_ends_with_one_when_its_worker_stops(
    worker: Settings, queue_run: QueueRun, way: SlowProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__LEASE_SEC", "3")
    monkeypatch.setenv("JOBS__BEAT_SEC", "1")
    process.settings.cache_clear()
    run_id = queue_run(max_steps=ENDLESS)
    checkpoints = worker.paths.runs / run_id / "checkpoints"
    log = job_log_path(worker, run_id)
    database = process.database()
    settings = process.settings()
    through = replace(settings.redis, url=f"redis://127.0.0.1:{way.port}/0")
    client = events.connect(replace(settings, redis=through))
    monkeypatch.setattr(process, "redis_client", lambda: client)
    kept: list[str] = []

    def said(words: str) -> Callable[[], bool]:
        return lambda: any(words in line for line in log.read_text().splitlines())

    def cut_off() -> None:
        assert soon(lambda: runs.get(database, run_id).step > 10)
        way.cut_off()
        assert database.file is not None
        away = database.file.rename(database.file.with_name("elsewhere"))
        assert soon(said("the work waits"))
        assert soon(lambda: bool(list(checkpoints.glob("step-*"))))
        kept.extend(path.name for path in checkpoints.glob("step-*"))
        draining.set()
        time.sleep(1)
        away.rename(database.file)

    cutting = threading.Thread(target=cut_off)
    cutting.start()
    perform(run_id, hostname="train-0@here", work=training.work)
    cutting.join()

    run = runs.get(database, run_id)
    assert (run.status, run.attempt) == ("queued", 1)
    assert [path.name for path in checkpoints.glob("step-*")] == kept  # it took no step since
    client.close()
