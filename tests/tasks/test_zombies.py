"""An attempt that slept past its lease publishes nothing, and damages nothing, when it wakes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tasks import housekeeping, process, staging, tokenizers, training
from tasks.held import Held
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.sleep import now_by_both_clocks
from tests.tasks.claims import claimed
from tests.tasks.tiny_runs import TINY, QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import LeaseLost
from trainer_app.log import JobLog, job_log_path
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store import tokenizers as names
from trainer_app.store.lease import Claim

TOKENIZER = TokenizerSpec(
    method="bpe",
    vocab_size=300,
    corpus_path="a.txt",
    corpus_sha256=TINY.corpus_sha256,
    tokenizer_id="mine",
)
DAY = 86_400.0


pytestmark = pytest.mark.usefixtures("queue_run")  # for its corpus


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    return queue_run(max_steps=3)


def end_lease(claim: Claim) -> None:
    """Its process sleeps for so long that the reaper ends its lease."""
    lease.expire(process.database(), claim.job_id, owner_prefix=claim.owner)
    housekeeping.reap()


def job_of(claim: Claim, since: tuple[float, float] | None = None) -> Job:
    settings = process.settings()
    return Job(
        claim=claim,
        held=Held(process.database(), process.redis_client(), settings.jobs, claim, since=since),
        log=JobLog(job_log_path(settings, claim.job_id), run_id=claim.job_id),
        events=process.job_events(
            claim.kind, job_id=claim.job_id, user_id=0, queue_name=claim.queue
        ),
    )


def outcome(job: Job) -> Done | StopReason:
    """Of a run's work; whoever notices first that the lease is lost may say so in its own way."""
    try:
        return training.work(job)
    except LeaseLost:
        return StopReason.FENCED


def once_all_is_synced(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[], object]) -> None:
    """Fall asleep between the last look at the lease and the rename that publishes."""
    sync, naps = files.fsync_tree, [sleep]

    def sync_and_sleep(directory: Path) -> None:
        sync(directory)
        if naps:
            naps.pop()()

    monkeypatch.setattr(files, "fsync_tree", sync_and_sleep)


def slept_while_another_was_published(
    fall_asleep: Callable[[Callable[[], object]], None],
) -> Claim:
    """The claim on a tokenizer whose work woke to find another job's under its name, and left it.

    ``fall_asleep`` is told what happens meanwhile.
    """
    database = process.database()
    slept = claimed(names.create(database, TOKENIZER, queue="light").job_id, "asleep:1")
    folder = artifacts.tokenizer_directory(process.settings(), "mine")
    published = []

    def sleep() -> None:
        lease.request_cancel(database, slept.job_id)
        end_lease(slept)
        other = replace(TOKENIZER, vocab_size=290)
        job_id = names.create(database, other, queue="light").job_id
        perform(job_id, hostname="awake@here", work=tokenizers.work)
        published.append(artifacts.pointer(folder).sha256)

    fall_asleep(sleep)
    with pytest.raises(LeaseLost):
        tokenizers.work(job_of(slept))

    assert artifacts.pointer(folder).sha256 == published[0]
    assert names.get(database, "mine").artifact_sha256 == published[0]
    return slept


@pytest.mark.parametrize("work", [training.work, tokenizers.work])
def test_who_slept_since_the_claim_asks_before_it_touches_a_file(
    run_id: str, work: Callable[[Job], object]
) -> None:
    slept = claimed(run_id, "asleep:1")
    monotonic, lasting = now_by_both_clocks()
    end_lease(slept)
    live = claimed(run_id, "awake:2")
    job = job_of(slept, since=(monotonic, lasting - DAY))  # as a machine that was suspended

    with pytest.raises(StopRequested) as stopped:
        work(job)

    assert stopped.value.reason is StopReason.FENCED
    lease.beat(process.database(), live, lease_seconds=60)


def test_who_wakes_before_its_first_look_leaves_alone_what_a_later_attempt_has_prepared(
    run_id: str,
) -> None:
    slept = claimed(run_id, "asleep:1")
    end_lease(slept)
    live = claimed(run_id, "awake:2")
    folder = process.settings().paths.runs / run_id
    prepared = [
        folder / f"staging-{live.attempt}" / "model",
        folder / "checkpoints" / f".step-000000100-attempt-{live.attempt}.{'0' * 16}.tmp",
    ]
    for path in prepared:
        path.mkdir(parents=True)

    job = job_of(slept)
    with job.held:
        assert outcome(job) is StopReason.FENCED

    assert all(path.exists() for path in prepared)


def test_a_model_is_not_published_once_its_lease_is_over_though_nobody_else_took_the_run(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = process.settings()
    renew = Job.renew_lease

    def sleep() -> None:
        lease.request_cancel(process.database(), run_id)
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()

    def renew_for_the_last_time(job: Job) -> None:
        renew(job)
        once_all_is_synced(monkeypatch, sleep)

    monkeypatch.setattr(Job, "renew_lease", renew_for_the_last_time)
    perform(run_id, hostname="train-0@here", work=training.work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.message) == ("cancelled", "cancelled; its worker was lost")
    assert not artifacts.model_directory(settings, run_id).exists()
    kept = [path.name for path in (settings.paths.runs / run_id).iterdir()]
    assert not [name for name in kept if "staging" in name]


@pytest.fixture
def two_file_systems(
    worker: Settings, other_file_system: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Artifacts lie on another one than runs."""
    monkeypatch.setenv("APP__ARTIFACTS_ROOT", str(other_file_system))
    process.settings.cache_clear()
    settings = process.settings()
    assert settings.paths.artifacts.stat().st_dev != worker.paths.data_root.stat().st_dev
    return settings


def once_all_is_copied(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[], object]) -> None:
    """Fall asleep between the last look at what was prepared and the rename that publishes."""
    swap, naps = files._swap, [sleep]

    def sleep_and_swap(source: Path, target: Path) -> None:
        if naps:
            naps.pop()()
        swap(source, target)

    monkeypatch.setattr(files, "_swap", sleep_and_swap)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_model_that_was_copied_to_another_file_system_is_not_published_once_its_lease_is_over(
    run_id: str, two_file_systems: Settings, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    models = artifacts.model_directory(two_file_systems, run_id).parent
    copied: list[str] = []

    def sleep() -> None:
        copied.extend(path.name for path in models.iterdir())
        if cancelled:
            lease.request_cancel(process.database(), run_id)
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()

    once_all_is_copied(monkeypatch, sleep)
    perform(run_id, hostname="train-0@here", work=training.work)

    assert copied == [f".{run_id}-1.copy"]
    assert runs.get(process.database(), run_id).status == ("cancelled" if cancelled else "queued")
    assert list(models.iterdir()) == []
    if not cancelled:
        perform(run_id, hostname="train-0@here", work=training.work)
        assert runs.get(process.database(), run_id).status == "completed"
        assert [path.name for path in models.iterdir()] == [run_id]


def test_a_tokenizer_of_another_job_stays_as_it_is_on_another_file_system_as_well(
    two_file_systems: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_while_another_was_published(partial(once_all_is_copied, monkeypatch))

    folder = artifacts.tokenizer_directory(two_file_systems, "mine")
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_copied_after_it_was_taken_away_does_not_appear(
    run_id: str, two_file_systems: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_directory = files._copy_directory

    def sleep_and_copy(source: Path, target: Path) -> None:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()
        copy_directory(source, target)

    monkeypatch.setattr(files, "_copy_directory", sleep_and_copy)
    perform(run_id, hostname="train-0@here", work=training.work)

    assert runs.get(process.database(), run_id).status == "queued"
    assert list(artifacts.model_directory(two_file_systems, run_id).parent.iterdir()) == []


def test_a_copy_that_was_left_by_one_who_was_killed_is_deleted_by_the_next_attempt(
    run_id: str, two_file_systems: Settings
) -> None:
    models = artifacts.model_directory(two_file_systems, run_id).parent
    later = staging.copy_beside(models / run_id, run_id, 2)
    left = [
        staging.copy_beside(models / run_id, run_id, 1),
        models / f"..{run_id}-1.copy.{'0' * 16}.tmp",
    ]
    for path in (later, *left):
        path.mkdir(parents=True)

    staging.remove_earlier(two_file_systems, run_id, 2)

    assert list(models.iterdir()) == [later]


def test_a_tokenizer_that_another_job_has_trained_meanwhile_stays_as_it_is(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = slept_while_another_was_published(partial(once_all_is_synced, monkeypatch))

    assert names.get(process.database(), "mine").spec.vocab_size == 290
    assert not list(worker.paths.runs.glob(f"*{slept.job_id}*"))


def test_what_cannot_be_taken_away_keeps_no_lost_attempt_alive(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = claimed(run_id, "asleep:1")
    prepared = process.settings().paths.runs / run_id / "staging-1"
    prepared.mkdir(parents=True)

    def refuse(_path: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(staging, "move_away", refuse)
    end_lease(slept)

    assert runs.get(process.database(), run_id).status == "queued"
    assert prepared.exists()


def test_a_disk_that_lists_nothing_keeps_no_lost_attempt_alive(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    slept = claimed(run_id, "asleep:1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", fail)
        end_lease(slept)

    assert runs.get(process.database(), run_id).status == "queued"


def test_what_a_later_attempt_has_prepared_is_not_taken_away_from_it(run_id: str) -> None:
    folder = process.settings().paths.runs / run_id
    for attempt in (1, 2):
        (folder / f"staging-{attempt}").mkdir(parents=True)

    (taken,) = staging.take_away(process.settings(), run_id, 1)

    assert sorted(path.name for path in folder.iterdir()) == [taken.name, "staging-2"]


def test_what_was_taken_away_by_one_who_was_killed_is_deleted_by_the_next_attempt(
    run_id: str,
) -> None:
    folder = process.settings().paths.runs / run_id
    taken = folder / f".staging-1.{'0' * 16}.tmp"
    notes = folder / "staging-notes"
    for path in (taken, notes):
        path.mkdir(parents=True)

    staging.remove_earlier(process.settings(), run_id, 2)

    assert [path.name for path in folder.iterdir()] == [notes.name]
