"""A disk that is taken away while a run trains: what lies beneath it gets nothing of the run."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from sqlalchemy import select, update

from tasks import process, reporting, training, worker
from tasks.fetched import corpus_of
from tasks.figures import left_in_place
from tasks.held import Held, draining
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.shells import work_of
from tests.tasks.tiny_runs import TINY, QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.loaded import LoadedModel
from trainer_app.core.observer import StepReport, StopReason
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.log import job_log_path
from trainer_app.restore import is_whole
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs, tokenizers
from trainer_app.store.runs import Run
from trainer_app.store.tables import JobKind, JobRow

Act = Callable[[], object]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Act:
    """Begin a worker as Celery does: it knows of an earlier one what the data root knows alone."""

    def begin() -> None:
        monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "[]")  # set back afterwards
        worker.refuse_unfit_folders()

    return begin


@pytest.fixture
def begun(queue_run: QueueRun, begin: Act) -> Settings:
    """The settings of a worker that has begun."""
    begin()
    return process.settings()


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One that is mounted at a folder, and can be taken away."""

    root: Path

    @property
    def _away(self) -> Path:
        return self.root.with_name(f"{self.root.name}-away")

    def take_away(self) -> None:
        """An empty folder lies beneath."""
        self.root.rename(self._away)
        self.root.mkdir()

    def bring_back(self) -> None:
        """Nothing was put into what lies beneath."""
        self.root.rmdir()
        self.bring_back_over_anything()

    def bring_back_over_anything(self) -> None:
        """What lies beneath is hidden again."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._away.rename(self.root)

    def give_up(self) -> None:
        """What lies beneath is to serve from now on."""
        (self.root / ".trainer-folder").touch()


def at_a_step(monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """Act once, at the first steps that are told."""
    tell = reporting.LogReporter.on_steps
    done: list[object] = []

    def act_and_tell(log: reporting.LogReporter, steps: Sequence[StepReport]) -> None:
        if not done:
            done.append(act())
        tell(log, steps)

    monkeypatch.setattr(reporting.LogReporter, "on_steps", act_and_tell)


def once_it_waits(job_id: str, act: Act) -> threading.Thread:
    """Act when the job's row says that it waits for a folder."""

    def watch() -> None:
        give_up_at = time.monotonic() + 60
        while "waits for it" not in row_of(job_id)[3] and time.monotonic() < give_up_at:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def train(run_id: str) -> Run:
    perform(run_id, hostname="train-0@here", work=training.work)
    return run_of(run_id)


def run_of(run_id: str) -> Run:
    return runs.get(process.database(), run_id)


def events(run_id: str) -> list[str]:
    lines = job_log_path(process.settings(), run_id).read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def weights(run_id: str) -> bytes:
    folder = artifacts.model_directory(process.settings(), run_id)
    assert is_whole(folder)
    return (folder / "model.safetensors").read_bytes()


def evaluation_of(run_id: str) -> str:
    """One that is queued, on the validation split."""
    return requests.create(
        process.database(),
        JobKind.EVALUATE,
        run_id,
        EvaluateSpec().to_json(),
        queue="q",
        user_id=0,
        topic="validation",
    ).request_id


def assert_waited(run_id: str, root: Path) -> None:
    told = events(run_id)
    assert told.index(f"{root} serves again: goes on") > told.index(waits_for(root))


def waits_for(root: Path) -> str:
    return (
        f"{root} has no .trainer-folder, as what lies beneath a disk that is not mounted: waits "
        "for it (mount it; where this folder, and no disk on it, is to serve from now on: "
        f"touch {root}/.trainer-folder)"
    )


def test_a_model_is_put_where_the_disk_is_and_not_beneath_it(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(whole := queue_run())
    run_id = queue_run()
    disk = Disk(root=begun.paths.artifacts)
    at_a_step(monkeypatch, disk.take_away)
    waiting = once_it_waits(run_id, disk.bring_back)
    run = train(run_id)
    waiting.join()

    assert (run.status, run.attempt) == ("completed", 1)
    assert_waited(run_id, disk.root)
    assert weights(run_id) == weights(whole)


@pytest.mark.parametrize("checkpoint_seconds", ["0.01", "3600"], ids=["checkpoint", "model"])
def test_no_checkpoint_and_no_model_is_written_beneath_a_disk_that_was_taken_away(
    queue_run: QueueRun,
    begun: Settings,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_seconds: str,
) -> None:
    monkeypatch.setenv("JOBS__CHECKPOINT_SEC", checkpoint_seconds)
    process.settings.cache_clear()
    train(whole := queue_run(max_steps=40))
    run_id = queue_run(max_steps=40)
    disk = Disk(root=begun.paths.runs)
    at_a_step(monkeypatch, disk.take_away)
    waiting = once_it_waits(run_id, disk.bring_back)
    run = train(run_id)
    waiting.join()

    assert (run.status, run.attempt) == ("completed", 1)
    assert_waited(run_id, disk.root)
    assert weights(run_id) == weights(whole)


@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_a_worker_that_begins_without_a_disk_puts_nothing_beneath_it(
    queue_run: QueueRun, begun: Settings, begin: Act, name: str
) -> None:
    """As one that is started before the disk is mounted."""
    train(whole := queue_run())
    disk = Disk(root=begun.paths.data_root / name)
    disk.take_away()
    begin()
    run = train(run_id := queue_run())
    assert (run.status, run.attempt, run.message) == ("queued", 0, waits_for(disk.root))
    disk.bring_back()
    called_again()
    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 1)
    assert weights(run_id) == weights(whole)


def test_a_run_whose_worker_begins_anew_without_its_disk_goes_on_once_that_is_back(
    queue_run: QueueRun, begun: Settings, begin: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(whole := queue_run(max_steps=40))
    run_id = queue_run(max_steps=40)
    disk = Disk(root=begun.paths.runs)
    at_a_step(monkeypatch, draining.set)
    assert train(run_id).status == "queued"
    draining.clear()
    disk.take_away()
    begin()
    assert train(run_id).message == waits_for(disk.root)
    disk.bring_back()
    called_again()
    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 2)
    assert any("its worker shut down, resumed from" in event for event in events(run_id))
    assert weights(run_id) == weights(whole)


def test_a_folder_that_is_to_serve_from_now_on_is_named_by_hand(
    queue_run: QueueRun, begun: Settings, begin: Act
) -> None:
    disk = Disk(root=begun.paths.artifacts)
    disk.take_away()
    artifacts.model_directory(begun, "run-before").mkdir(parents=True)  # what it holds is no reason
    begin()
    run_id = queue_run()
    assert train(run_id).message == waits_for(disk.root)
    disk.give_up()
    called_again()
    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 1)
    begin()
    train(queue_run())
    assert is_whole(artifacts.model_directory(begun, run_id))


def test_a_job_does_not_time_out_while_it_waits_for_a_disk(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    excused: list[float] = []
    excuse = Held.excuse

    def note(held: Held, seconds: float) -> None:
        before = held._times_out_at
        excuse(held, seconds)
        excused.append(held._times_out_at - before)

    monkeypatch.setattr(Held, "excuse", note)
    run_id = queue_run()
    disk = Disk(root=begun.paths.artifacts)
    at_a_step(monkeypatch, disk.take_away)

    def bring_back() -> None:
        give_up_at = time.monotonic() + 60
        while len(excused) < 2 and time.monotonic() < give_up_at:
            time.sleep(0.01)
        disk.bring_back()

    waiting = once_it_waits(run_id, bring_back)
    assert train(run_id).status == "completed"
    waiting.join()
    assert len(excused) >= 2
    assert min(excused) > 0.4  # of half a second between two looks


def cancel(run_id: str) -> None:
    lease.request_cancel(process.database(), run_id)


def drain(_run_id: str) -> None:
    draining.set()


@pytest.mark.parametrize(("stop", "status"), [(cancel, "cancelled"), (drain, "queued")])
@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_a_run_that_waits_for_a_disk_hears_a_stop(
    queue_run: QueueRun,
    begun: Settings,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stop: Callable[[str], None],
    status: str,
) -> None:
    run_id = queue_run()
    disk = Disk(root=begun.paths.data_root / name)
    at_a_step(monkeypatch, disk.take_away)
    waiting = once_it_waits(run_id, lambda: stop(run_id))
    run = train(run_id)
    waiting.join()

    assert run.status == status
    disk.bring_back()
    draining.clear()
    assert not artifacts.model_directory(begun, run_id).exists()


def test_a_disk_that_is_taken_away_as_the_model_is_put_there_costs_an_attempt_and_no_checkpoint(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()
    train(whole := queue_run())
    run_id = queue_run()
    disk = Disk(root=begun.paths.artifacts)

    def replace_beneath(source: Path, target: Path, *, copy: Path | None) -> None:
        disk.take_away()
        target.parent.mkdir()
        files.replace_directory(source, target, copy=copy)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "replace_directory", replace_beneath)
        run = train(run_id)
    assert run.status == "queued"
    assert run.message == waits_for(disk.root)
    assert [event for event in events(run_id) if "what lies beneath may hold it" in event]
    assert (begun.paths.runs / run_id).exists()

    assert train(run_id).message == waits_for(disk.root)
    disk.bring_back_over_anything()
    called_again()
    run = train(run_id)
    assert (run.status, run.attempt) == ("completed", 2)
    assert weights(run_id) == weights(whole)


def test_an_evaluation_that_was_put_beneath_a_disk_is_made_again(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()
    train(run_id := queue_run(holdout_fraction=0.1))
    request_id = evaluation_of(run_id)
    disk = Disk(root=begun.paths.artifacts)
    file = artifacts.evaluation_file(begun, run_id, "validation")
    replace = Path.replace

    def replace_beneath(path: Path, target: Path) -> Path:
        if target == file:
            prepared = path.read_bytes()
            disk.take_away()
            path.parent.mkdir(parents=True)
            file.parent.mkdir()
            path.write_bytes(prepared)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_beneath)
        perform(request_id, hostname="light@here", work=work_of(JobKind.EVALUATE))
    assert row_of(request_id)[0] == "queued"
    disk.bring_back_over_anything()

    perform(request_id, hostname="light@here", work=work_of(JobKind.EVALUATE))
    found = requests.get(process.database(), JobKind.EVALUATE, run_id, request_id)
    assert found.status == "completed"
    assert file.exists()


def tokenizer_job() -> str:
    spec = TokenizerSpec(
        method="char",
        vocab_size=300,
        corpus_path=TINY.corpus_path,
        corpus_sha256=TINY.corpus_sha256,
    )
    return tokenizers.create(process.database(), spec, queue="q").tokenizer_id


def light_job(kind: JobKind, run_id: str) -> str:
    return evaluation_of(run_id) if kind is JobKind.EVALUATE else tokenizer_job()


TRAINING = [(JobKind.TRAIN, "artifacts"), (JobKind.TRAIN, "runs")]


def row_of(job_id: str) -> tuple[str, int, int, str]:
    columns = (JobRow.status, JobRow.attempt, JobRow.retries, JobRow.message)
    with process.database().read() as connection:
        found = connection.execute(select(*columns).where(JobRow.id == job_id)).one()
    return found.status, found.attempt, found.retries, found.message


def look(job_id: str, kind: JobKind) -> None:
    perform(job_id, hostname="light@here", work=work_of(kind))


def called_again() -> None:
    """What was put off is due."""
    with process.database().write() as connection:
        connection.execute(update(JobRow).values(not_before=0.0))


LIGHT = [
    (JobKind.EVALUATE, "artifacts"),
    (JobKind.TOKENIZER, "artifacts"),
    (JobKind.TOKENIZER, "runs"),
]


@pytest.mark.parametrize(("kind", "name"), LIGHT)
def test_an_evaluation_and_a_tokenizer_wait_for_the_disk_too_and_leave_their_worker_to_others(
    queue_run: QueueRun, begun: Settings, kind: JobKind, name: str
) -> None:
    train(run_id := queue_run(holdout_fraction=0.1))
    disk = Disk(root=begun.paths.data_root / name)
    disk.take_away()
    job_id = light_job(kind, run_id)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            look(job_id, kind)
            assert row_of(job_id) == ("queued", 0, 0, waits_for(disk.root))
            assert lease.due(process.database()) == []  # not at once, but soon
            called_again()
    told = [line["log_level"] for line in lines if line["event"] == waits_for(disk.root)]
    assert told == ["warning", "debug", "debug"]
    assert not job_log_path(begun, job_id).exists()

    disk.bring_back()
    look(job_id, kind)
    assert row_of(job_id) == ("completed", 1, 0, "")
    assert events(job_id)[0] == "started"


@pytest.mark.parametrize(("kind", "name"), LIGHT)
def test_a_job_that_was_put_off_for_a_disk_is_cancelled_at_once(
    queue_run: QueueRun, begun: Settings, kind: JobKind, name: str
) -> None:
    train(run_id := queue_run(holdout_fraction=0.1))
    disk = Disk(root=begun.paths.data_root / name)
    disk.take_away()
    look(job_id := light_job(kind, run_id), kind)
    cancel(job_id)
    assert row_of(job_id)[0] == "cancelled"
    look(job_id, kind)
    assert row_of(job_id)[:2] == ("cancelled", 0)


@pytest.mark.parametrize(("kind", "name"), LIGHT + TRAINING)
def test_a_disk_that_goes_once_a_job_is_claimed_is_waited_for_before_anything_is_written(
    queue_run: QueueRun, begun: Settings, kind: JobKind, name: str
) -> None:
    train(run_id := queue_run(holdout_fraction=0.1))
    disk = Disk(root=begun.paths.data_root / name)
    job_id = queue_run() if kind is JobKind.TRAIN else light_job(kind, run_id)
    waiting: list[threading.Thread] = []

    def take_away_and_work(job: Job) -> Done | StopReason:
        disk.take_away()
        waiting.append(once_it_waits(job_id, disk.bring_back))
        return work_of(kind)(job)

    perform(job_id, hostname="light@here", work=take_away_and_work)
    waiting[0].join()
    assert row_of(job_id)[:2] == ("completed", 1)
    assert_waited(job_id, disk.root)


def test_a_run_whose_base_is_missed_with_its_disk_is_put_off_and_not_failed(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(base := queue_run())
    run_id = queue_run(pretrained_run_id=base)
    disk = Disk(root=begun.paths.artifacts)

    def fetch_for_hours(job: Job, spec: TrainSpec, *, on_message: Callable[[str], object]) -> Path:
        disk.take_away()
        return corpus_of(job, spec, on_message=on_message)

    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.corpus_of", fetch_for_hours)
        run = train(run_id)
    assert (run.status, run.attempt, run.message) == ("queued", 1, waits_for(disk.root))
    assert train(run_id).attempt == 1
    disk.bring_back_over_anything()
    called_again()
    run = train(run_id)
    assert (run.status, run.attempt) == ("completed", 2)
    assert any("its disk was away" in event for event in events(run_id))


def test_a_model_that_lies_beneath_a_disk_completes_no_run(
    queue_run: QueueRun, begun: Settings
) -> None:
    """Whoever put it there may have died at once."""
    train(run_id := queue_run())
    disk = Disk(root=begun.paths.artifacts)
    final = artifacts.model_directory(begun, run_id)
    assert left_in_place(final, run_id) is not None
    disk.take_away()
    shutil.copytree(disk._away / "models", disk.root / "models")
    assert left_in_place(final, run_id) is None
    disk.bring_back_over_anything()
    assert left_in_place(final, run_id) is not None


def test_a_model_is_evaluated_in_the_batches_that_it_was_trained_in(
    queue_run: QueueRun, begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_id := queue_run(batch_size=100_000, holdout_fraction=0.1))
    manifest = artifacts.read_manifest(artifacts.model_directory(begun, run_id))
    trained = manifest["batch_size"]
    assert trained != 100_000
    seen: list[object] = []
    check = LoadedModel.check_trained_as

    def note(model: LoadedModel, spec: TrainSpec) -> None:
        seen.append(spec.batch_size)
        check(model, spec)

    monkeypatch.setattr(LoadedModel, "check_trained_as", note)
    perform(evaluation_of(run_id), hostname="light@here", work=work_of(JobKind.EVALUATE))
    assert seen == [trained]
