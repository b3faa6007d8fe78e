"""How jobs end: each outcome is written once, by the attempt that holds the lease."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tasks import process
from tasks.ending import run_code
from tasks.held import draining
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.publishing import publish
from trainer_app.core import device
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import (
    RUN_CODES,
    CorpusEmpty,
    DiskFull,
    LeaseLost,
    LossNotFinite,
    TrainerError,
    Unavailable,
)
from trainer_app.queue import heartbeat_key, inference_queue
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, requests, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, JobKind, Progress
from trainer_app.wishes import cancelled_key

Sent = Callable[[], list[dict[str, object]]]

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer").run_id


def done(job: Job) -> Done:
    return Done(result='{"final_loss": 1.0}', result_id=job.claim.job_id, result_bytes=3)


def raising(error: BaseException) -> Callable[[Job], Done | StopReason]:
    def work(job: Job) -> Done | StopReason:
        raise error

    return work


def until_stopped(job: Job) -> Done | StopReason:
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        reason = job.held.should_stop()
        if reason is not None:
            return reason
        time.sleep(0.01)
    raise TimeoutError


def logged(settings: Settings, run_id: str) -> list[dict[str, object]]:
    path = Path(settings.paths.logs, f"{run_id}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_finished_job_is_completed_with_its_result(
    worker: Settings, run_id: str, sent_events: Sent
) -> None:
    perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt, run.progress) == ("completed", 1, 100)
    assert [line["event"] for line in logged(worker, run_id)] == ["started", "completed"]
    assert [event["type"] for event in sent_events()] == [
        "trainer.job.started.v1",
        "trainer.job.completed.v1",
    ]


def test_a_message_that_comes_twice_runs_the_job_once(worker: Settings, run_id: str) -> None:
    ran: list[str] = []

    def work(job: Job) -> Done:
        ran.append(job.claim.job_id)
        return done(job)

    for _ in range(10):
        perform(run_id, hostname="train-0@here", work=work)

    assert ran == [run_id]


def test_final_figures_are_announced_after_the_completion(
    worker: Settings, run_id: str, sent_events: Sent
) -> None:
    def work(job: Job) -> Done:
        return Done(result="{}", result_id=run_id, final_metrics={"test_loss": 2.0})

    perform(run_id, hostname="train-0@here", work=work)

    assert [event["type"] for event in sent_events()][-2:] == [
        "trainer.job.completed.v1",
        "trainer.metrics.completed.v1",
    ]


def test_a_users_error_fails_the_job_at_once_and_is_not_retried(
    worker: Settings,
    run_id: str,
    sent_events: Sent,
) -> None:
    perform(run_id, hostname="train-0@here", work=raising(CorpusEmpty("the corpus holds no text")))

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "CORPUS_EMPTY")
    assert run.message == "the corpus holds no text"
    failed = sent_events()[-1]
    assert (failed["error_kind"], failed["message"]) == ("user", "the corpus holds no text")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DiskFull("no space left for model.safetensors"), "DISK_FULL"),
        (ZeroDivisionError("division by zero"), "INTERNAL_ERROR"),
    ],
)
def test_a_failure_of_the_system_is_retried_later_and_then_fails(
    worker: Settings,
    run_id: str,
    error: Exception,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    sent_events: Sent,
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()

    perform(run_id, hostname="train-0@here", work=raising(error))
    first = runs.get(process.database(), run_id)
    perform(run_id, hostname="train-0@here", work=raising(error))
    second = runs.get(process.database(), run_id)

    assert (first.status, second.status) == ("queued", "failed")
    assert first.message.startswith("attempt 1 failed: ")
    assert second.error_code == code
    assert sent_events()[-1]["error_kind"] == "system"


def test_whatever_stops_a_run_it_fails_with_a_code_of_the_list() -> None:
    codes = {error.code for error in errors_of(TrainerError)}
    assert set(RUN_CODES) <= codes
    assert {run_code(code) for code in codes} == set(RUN_CODES)


def errors_of(kind: type[TrainerError]) -> Iterator[type[TrainerError]]:
    """The class and all that are derived from it."""
    yield kind
    for derived in kind.__subclasses__():
        yield from errors_of(derived)


def test_failures_of_the_system_far_apart_fail_no_run_that_gets_further_between_them(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    monkeypatch.setenv("CELERY__RETRY_MAX", "1")
    process.settings.cache_clear()

    def work(job: Job) -> Done | StopReason:
        step = 1_000 * job.claim.attempt
        change = Progress(step=step, checkpoint=f"step-{step}", checkpoint_step=step)
        lease.progress(process.database(), job.claim, change)
        raise DiskFull("no space left for model.safetensors")

    for _ in range(3):
        perform(run_id, hostname="train-0@here", work=work)
    further = runs.get(process.database(), run_id)
    perform(run_id, hostname="train-0@here", work=raising(DiskFull("no space left")))

    assert (further.status, further.attempt) == ("queued", 3)
    assert runs.get(process.database(), run_id).status == "failed"


def test_running_out_of_memory_fails_the_run_without_a_retry(worker: Settings, run_id: str) -> None:
    perform(run_id, hostname="train-0@here", work=raising(MemoryError()))

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "OUT_OF_MEMORY")


def test_a_cancelled_run_ends_as_cancelled_within_two_seconds(
    worker: Settings,
    run_id: str,
    sent_events: Sent,
) -> None:
    asked_at = 0.0

    def work(job: Job) -> Done | StopReason:
        nonlocal asked_at
        lease.request_cancel(process.database(), run_id)
        asked_at = time.monotonic()
        return until_stopped(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert time.monotonic() - asked_at < 2.0
    assert runs.get(process.database(), run_id).status == "cancelled"
    failed = sent_events()[-1]
    assert (failed["type"], failed["error_kind"], failed["message"]) == (
        "trainer.job.failed.v1",
        "user",
        "cancelled",
    )


def test_a_client_may_cancel_by_setting_the_key_in_redis(worker: Settings, run_id: str) -> None:
    def work(job: Job) -> Done | StopReason:
        process.redis_client().set(cancelled_key(run_id), "1")
        return until_stopped(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "cancelled"
    assert process.redis_client().get(cancelled_key(run_id)) is None


@pytest.mark.parametrize("ending", [StopReason.DRAIN, DiskFull("no space left")])
def test_a_cancellation_in_redis_is_heard_while_a_job_stops_for_another_reason(
    worker: Settings, run_id: str, ending: StopReason | DiskFull
) -> None:
    def work(job: Job) -> StopReason:
        draining.set()
        until_stopped(job)
        process.redis_client().set(cancelled_key(run_id), "1")
        give_up_at = time.monotonic() + 20
        while not lease.cancel_requested(process.database(), job.claim):  # a checkpoint is written
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        if isinstance(ending, StopReason):
            return ending
        raise ending

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "cancelled"
    assert process.redis_client().get(cancelled_key(run_id)) is None


def test_a_cancellation_in_redis_that_came_too_late_for_one_attempt_is_heard_by_the_next(
    worker: Settings, run_id: str
) -> None:
    def work(job: Job) -> StopReason:
        job.held.stop(StopReason.DRAIN)
        process.redis_client().set(cancelled_key(run_id), "1")
        return StopReason.DRAIN

    perform(run_id, hostname="train-0@here", work=work)
    perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("cancelled", 1)


def test_a_running_job_shows_a_heartbeat_in_redis_and_none_afterwards(
    worker: Settings, run_id: str
) -> None:
    def work(job: Job) -> Done | StopReason:
        give_up_at = time.monotonic() + 10
        while (beat := process.redis_client().get(heartbeat_key(run_id))) is None:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        assert abs(float(beat) - time.time()) < 5
        return done(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "completed"
    assert process.redis_client().get(heartbeat_key(run_id)) is None


def test_a_worker_that_shuts_down_hands_its_job_back_uncharged(
    worker: Settings, run_id: str
) -> None:
    def work(job: Job) -> Done | StopReason:
        draining.set()
        return until_stopped(job)

    perform(run_id, hostname="train-0@here", work=work)
    handed_back = runs.get(process.database(), run_id)
    draining.clear()
    perform(run_id, hostname="train-0@here", work=done)

    assert handed_back.status == "queued"
    assert runs.get(process.database(), run_id).attempt == 2


def test_a_run_that_fails_while_it_is_to_be_paused_says_that_it_is_paused(
    worker: Settings, run_id: str
) -> None:
    def work(_: Job) -> Done:
        pauses.pause(process.database(), run_id)
        raise DiskFull("no space left")

    perform(run_id, hostname="train-0@here", work=work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.paused) == ("queued", True)
    assert run.message == "attempt 1 failed: no space left; paused"
    assert logged(worker, run_id)[-1]["event"] == run.message


@pytest.mark.parametrize("ending", [StopReason.DRAIN, DiskFull("no space left")])
def test_a_job_that_would_be_queued_again_but_was_cancelled_ends_as_cancelled(
    worker: Settings, run_id: str, sent_events: Sent, ending: StopReason | DiskFull
) -> None:
    def work(job: Job) -> Done | StopReason:
        lease.request_cancel(process.database(), run_id)
        if isinstance(ending, StopReason):
            return ending
        raise ending

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "cancelled"
    assert sent_events()[-1]["message"] == "cancelled"


def test_a_queued_run_that_a_client_cancels_in_redis_never_starts(
    worker: Settings, run_id: str, sent_events: Sent
) -> None:
    process.redis_client().set(cancelled_key(run_id), "1")

    for _ in range(2):
        perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("cancelled", 0)
    assert process.redis_client().get(cancelled_key(run_id)) is None
    [event] = sent_events()
    assert event["type"] == "trainer.job.failed.v1"
    assert (event["error_kind"], event["message"]) == ("user", "cancelled")


@pytest.mark.usefixtures("worker")
def test_a_cancellation_in_redis_of_what_has_ended_or_was_no_run_is_nothing(run_id: str) -> None:
    perform(run_id, hostname="train-0@here", work=done)
    for job_id in (run_id, "run-of-nobody"):
        process.redis_client().set(cancelled_key(job_id), "1")
        perform(job_id, hostname="train-0@here", work=done)

    assert process.redis_client().get(cancelled_key(run_id)) is None
    assert runs.get(process.database(), run_id).status == "completed"


def test_a_run_is_done_also_while_redis_is_away(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()
    process.redis_client.cache_clear()

    perform(run_id, hostname="train-0@here", work=done)

    assert runs.get(process.database(), run_id).status == "completed"


def test_only_runs_are_told_of(worker: Settings, run_id: str, sent_events: Sent) -> None:
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64)
    job_id = tokenizers.create(process.database(), spec, queue="trainer.light").job_id

    perform(job_id, hostname="light-0@here", work=done)
    perform(run_id, hostname="train-0@here", work=done)

    assert {event["job_id"] for event in sent_events()} == {run_id}


def test_what_a_worker_logs_has_the_ids_of_its_present_job(
    worker: Settings,
) -> None:
    structlog.contextvars.bind_contextvars(job_id="run-before", request_id="request-before")
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        perform("run-of-nobody", hostname="train-0@here", work=done)

    (line,) = (line for line in lines if line.get("job_id") == "run-of-nobody")
    assert "request_id" not in line
    assert all(line.get("job_id") != "run-before" for line in lines)


def test_a_job_that_lost_its_lease_writes_nothing_more(worker: Settings, run_id: str) -> None:
    def work(job: Job) -> Done | StopReason:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)
        assert until_stopped(job) is StopReason.FENCED
        return done(job)  # a zombie that does not listen

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "queued"
    assert [entry["event"] for entry in logged(worker, run_id)] == ["started"]


def test_a_lease_lost_inside_the_work_is_no_failure(worker: Settings, run_id: str) -> None:
    def work(job: Job) -> Done | StopReason:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)
        raise LeaseLost("gone")

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "queued"


def test_a_fenced_engine_ends_quietly(worker: Settings, run_id: str) -> None:
    def work(job: Job) -> Done | StopReason:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)
        return StopReason.FENCED

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "queued"


def test_a_database_that_is_away_when_a_result_is_published_is_waited_for(
    lock_database: Callable[[Callable[[], object]], None], run_id: str
) -> None:
    def work(job: Job) -> Done:
        lock_database(lambda: time.sleep(0.5))
        job.renew_lease()
        return done(job)

    perform(run_id, hostname="train-0@here", work=work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("completed", 1)


def test_a_database_that_stays_away_for_too_long_when_a_job_ends_is_not_waited_for(
    lock_database: Callable[[Callable[[], object]], None],
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.patience._PATIENCE_SECONDS", 0.2)
    is_over = threading.Event()

    def work(job: Job) -> Done:
        lock_database(lambda: is_over.wait(60))
        return done(job)

    with pytest.raises(Unavailable):
        perform(run_id, hostname="train-0@here", work=work)
    is_over.set()

    # The lease ends some time, and the run goes on with another attempt.
    assert runs.get(process.database(), run_id).status == "running"


def test_a_file_that_is_missing_when_a_result_is_published_is_no_lost_lease(
    worker: Settings, run_id: str
) -> None:
    def work(job: Job) -> Done:
        def rename() -> None:
            raise FileNotFoundError("config.json")

        publish(job, rename, is_in_place=lambda: False)
        raise AssertionError("it goes on without the file")

    perform(run_id, hostname="train-0@here", work=work)

    run = runs.get(process.database(), run_id)
    assert run.status == "queued"
    assert "FileNotFoundError: config.json" in run.message


def test_a_job_ends_when_its_time_is_over(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__JOB_TIMEOUT_SEC", "1")
    process.settings.cache_clear()

    perform(run_id, hostname="train-0@here", work=until_stopped)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "TIMED_OUT")


def test_a_beating_job_outlives_its_lease(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__LEASE_SEC", "2")
    monkeypatch.setenv("JOBS__BEAT_SEC", "0.3")
    process.settings.cache_clear()
    reaped = []

    def work(job: Job) -> Done | StopReason:
        for _ in range(6):
            time.sleep(0.5)
            reaped.extend(lease.reap(process.database(), max_crashes=3))
        return done(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert reaped == []
    assert runs.get(process.database(), run_id).status == "completed"


def test_a_request_is_logged_under_its_run(worker: Settings, run_id: str) -> None:
    request = requests.create(
        process.database(),
        JobKind.GENERATE,
        run_id,
        GenerateSpec(prompt_text="a").to_json(),
        queue="trainer.inference",
        user_id=0,
    )

    perform(request.request_id, hostname="infer@here", work=done)

    assert logged(worker, request.request_id)[0]["run_id"] == run_id


def test_what_is_no_text_under_the_key_of_a_cancellation_is_none(
    worker: Settings, run_id: str
) -> None:
    process.redis_client().set(cancelled_key(run_id), b"\xff\xfe")

    def work(job: Job) -> Done | StopReason:
        process.redis_client().set(cancelled_key(run_id), b"\xff\xfe")
        lease.request_cancel(process.database(), run_id)
        return until_stopped(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(process.database(), run_id).status == "cancelled"


def test_a_process_whose_worker_has_died_leaves_its_job_to_another(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_worker", [])
    process.remember_the_worker()
    monkeypatch.setattr(os, "getppid", lambda: -1)

    perform(run_id, hostname="train-0@here", work=done)

    assert runs.get(process.database(), run_id).status == "queued"


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends the worker of this process."""
    monkeypatch.setattr(process, "_worker", [])
    process.remember_the_worker()
    return lambda: monkeypatch.setattr(os, "getppid", lambda: -1)


def test_a_process_whose_worker_dies_while_it_waits_to_claim_leaves_its_job_to_another(
    lock_database: Callable[[Callable[[], object]], None], run_id: str, die: Callable[[], None]
) -> None:
    is_over = threading.Event()
    lock_database(lambda: is_over.wait(60))
    timer = threading.Timer(0.5, die)
    timer.start()
    began = time.monotonic()

    perform(run_id, hostname="train-0@here", work=done)
    waited = time.monotonic() - began
    is_over.set()
    timer.join()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("queued", 0)
    assert waited < 30


def test_a_process_whose_worker_dies_while_it_waits_for_a_database_leaves_its_job_to_another(
    worker: Settings, monkeypatch: pytest.MonkeyPatch, die: Callable[[], None]
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    for make in (process.settings, process.database):
        make.cache_clear()
    timer = threading.Timer(0.5, die)
    timer.start()

    with structlog.testing.capture_logs() as lines:
        perform("run-1", hostname="train-0@here", work=done)
    timer.join()

    assert lines[-1]["event"].startswith("the worker of this process has died")


def test_a_process_whose_worker_dies_as_it_claims_its_job_hands_it_back(
    run_id: str, monkeypatch: pytest.MonkeyPatch, die: Callable[[], None]
) -> None:
    claim = lease.claim

    def claim_and_die(
        database: Database, job_id: str, holder: str, *, lease_seconds: float
    ) -> Claim | None:
        claimed = claim(database, job_id, holder, lease_seconds=lease_seconds)
        die()
        return claimed

    monkeypatch.setattr(lease, "claim", claim_and_die)
    perform(run_id, hostname="train-0@here", work=until_stopped)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt, run.crashes) == ("queued", 1, 0)
    assert run.message == "handed back: its worker shuts down"


class Tensors:
    """What a job has on a GPU."""


ENDS: dict[str, Callable[[], Exception | None]] = {
    "done": lambda: None,
    "another attempt's": lambda: LeaseLost("taken"),
    "handed back": lambda: StopRequested(StopReason.DRAIN),
    "too long": lambda: StopRequested(StopReason.TIMEOUT),
    "diverged": lambda: LossNotFinite("the loss is nan"),
    "no memory": MemoryError,
    "a bug": lambda: ValueError("a bug"),
}


def releases(
    monkeypatch: pytest.MonkeyPatch, job_id: str, end: Callable[[], Exception | None]
) -> list[bool]:
    """Perform a job; for each release of memory, whether what the job held had gone by then."""
    held: list[weakref.ref[Tensors]] = []
    released: list[bool] = []

    def deep_within(tensors: Tensors) -> None:
        held.append(weakref.ref(tensors))
        if (error := end()) is not None:
            raise error

    def work(job: Job) -> Done:
        deep_within(Tensors())
        return done(job)

    def release() -> None:
        gc.collect()
        released.append(held[-1]() is None)

    process.growth().is_too_much()  # releases what there was before the first job
    monkeypatch.setattr(device, "release_memory", release)
    perform(job_id, hostname="train-0@here", work=work)
    return released


@pytest.mark.parametrize("end", ENDS)
def test_what_a_job_held_is_released_however_it_ended(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    assert releases(monkeypatch, run_id, ENDS[end]) == [True]


@pytest.mark.parametrize("end", ENDS)
def test_after_an_answer_the_next_request_waits_for_no_release(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    request = requests.create(
        process.database(),
        JobKind.GENERATE,
        run_id,
        GenerateSpec(prompt_text="a").to_json(),
        queue=inference_queue(worker),
        user_id=0,
    )
    expected = [] if end == "done" else [True]
    assert releases(monkeypatch, request.request_id, ENDS[end]) == expected
