"""Runs that go on: what they say of it, and that their curve is one chain."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete

from tasks import housekeeping, process, training
from tasks.held import draining
from tasks.perform import perform
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.api.metrics_schema import PointSchema
from trainer_app.core.loss_chain import START, link
from trainer_app.log import JobLog, job_log_path, last_events
from trainer_app.replies import MetricPoint
from trainer_app.settings import Settings
from trainer_app.store import lease, metrics, pauses, runs
from trainer_app.store.runs import Run
from trainer_app.store.tables import MetricRow
from trainer_app.verify import check_unfinished_curve


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    return queue_run(max_steps=400, num_epochs=100, eval_steps=100, logging_steps=3)


def train(run_id: str) -> Run:
    perform(run_id, hostname="train-0@here", work=training.work)
    return runs.get(process.database(), run_id)


def train_until_stopped(run_id: str, stop: Callable[[], object], *, beyond: int = 0) -> Run:
    """Train, and call ``stop`` once the run is beyond a step."""

    def watch() -> None:
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            if (runs.get(process.database(), run_id).step or 0) > beyond:
                break
            time.sleep(0.02)
        stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = train(run_id)
    watcher.join()
    draining.clear()
    return run


def logged(run_id: str) -> str:
    return job_log_path(process.settings(), run_id).read_text()


def reaches_its_checkpoint(run: Run, points: list[MetricPoint]) -> bool:
    return check_unfinished_curve(
        points, loss_chain=run.loss_chain, loss_chain_step=run.loss_chain_step
    ).ok


def test_a_run_that_is_paused_waits_at_a_checkpoint_and_goes_on_from_it(run_id: str) -> None:
    paused = train_until_stopped(run_id, lambda: pauses.pause(process.database(), run_id))
    assert (paused.status, paused.paused) == ("queued", True)
    assert paused.checkpoint_step
    assert paused.message == f"paused at step {paused.checkpoint_step}"
    assert train(run_id).attempt == 1  # a message that comes late

    pauses.resume(process.database(), run_id)
    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 2)
    assert f"attempt 2: paused, resumed from {paused.checkpoint_step}" in logged(run_id)


def test_a_run_its_log_and_its_manifest_say_the_same_of_what_was_left_to_the_worker(
    run_id: str,
) -> None:
    asked = runs.get(process.database(), run_id).spec
    assert (asked.device, asked.precision, asked.data_pin_memory) == ("auto", "auto", None)
    stopped = train_until_stopped(run_id, lambda: pauses.pause(process.database(), run_id)).spec
    assert (stopped.device, stopped.precision, stopped.data_pin_memory) == ("cpu", "fp32", False)

    pauses.resume(process.database(), run_id)
    run = train(run_id)

    assert run.spec == stopped
    lines = [json.loads(line) for line in logged(run_id).splitlines()]
    told = [line for line in lines if line["event"] == "training"]
    assert [line["torch_compile"] for line in told if "device" in line] == ["off", "off"]
    manifest = artifacts.read_manifest(artifacts.model_directory(process.settings(), run_id))
    assert manifest["spec"] == json.loads(run.spec.to_json())
    assert (manifest["device"], manifest["precision"]) == ("cpu", "fp32")


def test_a_cancelled_run_that_is_resumed_completes_with_the_chain_of_one_curve(
    run_id: str,
) -> None:
    cancelled = train_until_stopped(
        run_id, lambda: lease.request_cancel(process.database(), run_id)
    )
    assert cancelled.status == "cancelled"
    assert cancelled.checkpoint_step
    stopped = PointSchema(many=True).dump(metrics.curve(process.database(), run_id))
    assert cancelled.loss_chain_step == cancelled.checkpoint_step
    assert reaches_its_checkpoint(cancelled, stopped)
    assert not reaches_its_checkpoint(cancelled, stopped[:-1])

    pauses.resume(process.database(), run_id)
    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 2)
    points = metrics.curve(process.database(), run_id)
    assert {point.attempt for point in points} == {1, 2}
    chain = START
    for point in points:
        assert point.train_loss is not None
        chain = link(chain, point.step, point.train_loss)
        assert point.chain == chain
    folder = artifacts.model_directory(process.settings(), run_id)
    assert json.loads((folder / "manifest.json").read_bytes())["loss_chain"] == chain


def test_a_run_that_ends_while_the_database_is_away_keeps_the_end_of_its_curve(
    run_id: str, lock_database: Callable[[Callable[[], object]], None]
) -> None:
    def wait_for_the_end() -> None:
        give_up_at = time.monotonic() + 60
        while "saving the model" not in logged(run_id) and time.monotonic() < give_up_at:
            time.sleep(0.02)
        time.sleep(3.0)

    run = train_until_stopped(run_id, lambda: lock_database(wait_for_the_end))

    assert (run.status, run.attempt, run.step) == ("completed", 1, 400)
    folder = artifacts.model_directory(process.settings(), run_id)
    chain = json.loads((folder / "manifest.json").read_bytes())["loss_chain"]
    assert metrics.curve(process.database(), run_id)[-1].chain == chain


def test_a_run_that_is_to_stop_at_its_end_while_the_database_is_away_keeps_its_curve(
    run_id: str, lock_database: Callable[[Callable[[], object]], None]
) -> None:
    def drain_at_the_end() -> None:
        give_up_at = time.monotonic() + 60
        while "saving the model" not in logged(run_id) and time.monotonic() < give_up_at:
            time.sleep(0.02)
        draining.set()
        time.sleep(3.0)

    stopped = train_until_stopped(run_id, lambda: lock_database(drain_at_the_end))
    assert stopped.status == "queued"
    run = train(run_id)

    assert (run.status, run.attempt, run.step) == ("completed", 2, 400)
    points = metrics.curve(process.database(), run_id)
    chain = START
    for point in points:
        assert point.train_loss is not None
        chain = link(chain, point.step, point.train_loss)
    folder = artifacts.model_directory(process.settings(), run_id)
    assert json.loads((folder / "manifest.json").read_bytes())["loss_chain"] == chain


def test_what_an_earlier_attempt_was_about_to_publish_is_gone_once_there_is_another(
    run_id: str,
) -> None:
    folder = process.settings().paths.runs / run_id
    (folder / "staging-0" / "model").mkdir(parents=True)

    train_until_stopped(run_id, lambda: pauses.pause(process.database(), run_id))

    assert "staging-0" not in [path.name for path in folder.iterdir()]


def test_the_message_of_a_resumed_run_names_the_cause(run_id: str) -> None:
    said = []
    train_until_stopped(run_id, draining.set)

    def look_and_pause() -> None:
        said.append(runs.get(process.database(), run_id).message)
        pauses.pause(process.database(), run_id)

    train_until_second_start(run_id, look_and_pause)

    assert "attempt 2: its worker shut down, resumed from " in said[0]


def test_a_checkpoint_of_another_run_is_left_out_though_it_is_newer(run_id: str) -> None:
    def stop_at_a_checkpoint(one: str, beyond: int = 0) -> Path:
        step = train_until_stopped(one, draining.set, beyond=beyond).checkpoint_step
        folder = process.settings().paths.runs / one / "checkpoints"
        return folder / f"step-{step:09d}-attempt-1"

    spec = replace(runs.get(process.database(), run_id).spec, seed=7)
    other = runs.create(process.database(), spec, queue="trainer").run_id
    own = stop_at_a_checkpoint(run_id)
    foreign = stop_at_a_checkpoint(other, beyond=int(own.name.split("-")[1]) + 10)
    shutil.copytree(foreign, own.parent / foreign.name)

    assert train(run_id).status == "completed"

    said = logged(run_id)
    assert f"it is a checkpoint of run {other}, not of {run_id}" in said
    assert f"from {own.name}" in said


def test_a_run_whose_checkpoints_are_gone_begins_anew_and_says_so(run_id: str) -> None:
    paused = train_until_stopped(run_id, lambda: pauses.pause(process.database(), run_id))
    shutil.rmtree(process.settings().paths.runs / run_id / "checkpoints")
    pauses.resume(process.database(), run_id)

    assert train(run_id).status == "completed"

    step = paused.checkpoint_step
    assert f"2: paused, resumed from 0; the checkpoint of step {step} is gone" in logged(run_id)


def test_a_damaged_checkpoint_is_told_in_the_log_and_the_message_and_the_one_before_is_used(
    run_id: str,
) -> None:
    first = train_until_stopped(run_id, draining.set).checkpoint_step
    second = train_until_stopped(run_id, draining.set, beyond=first or 0).checkpoint_step
    assert first
    assert second
    assert second > first
    folder = process.settings().paths.runs / run_id / "checkpoints"
    newest = folder / f"step-{second:09d}-attempt-2"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    said: list[str] = []
    reached: list[int | None] = []

    def look_and_pause() -> None:
        run = runs.get(process.database(), run_id)
        said.append(run.message)
        reached.append(run.loss_chain_step)
        pauses.pause(process.database(), run_id)

    train_until_second_start(run_id, look_and_pause, attempt=3)
    assert reached == [first]
    points = PointSchema(many=True).dump(metrics.curve(process.database(), run_id))
    assert reaches_its_checkpoint(runs.get(process.database(), run_id), points)
    pauses.resume(process.database(), run_id)
    run = train(run_id)

    told = f"checkpoint {newest.name} is damaged and left out: model.safetensors is not what"
    assert f"resumed from {first}; {told}" in said[0]
    assert f"resumed from {first}; {told}" in logged(run_id)
    assert run.status == "completed"
    chain = START
    for point in metrics.curve(process.database(), run_id):
        assert point.train_loss is not None
        chain = link(chain, point.step, point.train_loss)
        assert point.chain == chain


def train_until_second_start(run_id: str, look: Callable[[], None], attempt: int = 2) -> None:
    """Train, and call ``look`` once this attempt says that it trains."""

    def watch() -> None:
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            if f"attempt {attempt}" in runs.get(process.database(), run_id).message:
                break
            time.sleep(0.02)
        look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    train(run_id)
    watcher.join()


def test_a_run_that_loses_every_worker_tells_the_last_words_of_its_log(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    log = JobLog(job_log_path(worker, run_id), run_id=run_id)
    log.info("x" * 20_000)
    for step in (5, 10):
        log.info("step", step=step)
    log.info("saving the model")
    assert lease.claim(process.database(), run_id, "train-0@gone:1", lease_seconds=60)
    lease.expire(process.database(), run_id, owner_prefix="train-0@gone:")

    housekeeping.reap()

    message = "lost its worker 1 time; last at step 0; its log ends with: "
    run = runs.get(process.database(), run_id)
    assert run.message == f"{message}step 5 | step 10 | saving the model"
    log.close()


def test_a_run_whose_attempt_died_after_it_had_published_says_why_there_is_another(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process is no more."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "_recorded", killed)
        with pytest.raises(Killed):
            train(run_id)
    lease.expire(process.database(), run_id, owner_prefix="train-0@here")
    lease.reap(process.database(), max_crashes=3)  # as by a version that looks for no model

    run = train(run_id)

    assert (run.status, run.attempt) == ("completed", 2)
    (told,) = [line for line in logged(run_id).splitlines() if "published already" in line]
    event = json.loads(told)["event"]
    assert event.startswith("attempt 2: ")
    assert "interrupted" not in event
    assert event.endswith(", its model was published already")


def test_a_line_that_is_too_long_to_quote_is_left_out(worker: Settings, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JobLog(path)
    log.info("x" * 20_000)
    log.close()

    assert last_events(path, 3) == []


def test_points_that_a_killed_process_had_not_told_the_database_are_not_lost(
    run_id: str,
) -> None:
    stopped = train_until_stopped(run_id, draining.set)
    assert stopped.checkpoint_step
    with process.database().write() as connection:
        connection.execute(delete(MetricRow).where(MetricRow.step > 3))
    folder = process.settings().paths.runs / run_id
    with (folder / "curve-1.jsonl").open("a") as file:
        file.write('{"step": 4')  # cut off by a full disk

    assert train(run_id).status == "completed"

    points = metrics.curve(process.database(), run_id)
    measured = {point.attempt for point in points if point.step <= stopped.checkpoint_step}
    assert measured == {1}  # whoever told the database
    chain = START
    for point in points:
        assert point.train_loss is not None
        chain = link(chain, point.step, point.train_loss)
    assert chain == points[-1].chain
