"""Weights & Biases, in its own offline files, read by its own reader; never in a run's way."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.reports import START, evaluation, step
from tests.tracking.attempts import (
    PATIENCE_SECONDS,
    PERFORMANCE,
    RUN,
    SPEC,
    exit_code,
    finished,
    one,
    only_warning,
    records,
    rows,
    tracker,
    warnings,
)
from trainer_app.core.observer import StopReason
from trainer_app.core.run_files import Stopped
from trainer_app.log import JobLog


def test_each_step_has_its_figures(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1, 2.5), step(10, 2.0)])
        tracked.on_steps([step(20, 1.0, epoch=1)])

    [attempt] = records(tmp_path)
    common = {
        "grad_norm": 0.5,
        "samples_per_sec": 10.0,
        "tokens_per_sec": 640.0,
        "step_ms": 100.0,
    }
    assert rows(attempt) == [
        {
            "_step": number,
            "global_step": number,
            "epoch": epoch,
            "train_loss": loss,
            "train_ppl": pytest.approx(math.exp(loss)),
            **common,
        }
        for number, epoch, loss in ((1, 0, 2.5), (10, 0, 2.0), (20, 1, 1.0))
    ]
    assert warnings(tmp_path) == []


def test_of_steps_however_fast_they_come_each_is_there(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        for first in range(1, 6_000, 1_000):  # what a training of 4,000 steps a second reports
            tracked.on_steps([step(number) for number in range(first, first + 1_000)])

    [attempt] = records(tmp_path)
    assert [row["_step"] for row in rows(attempt)] == list(range(1, 6_001))


def test_a_step_that_fp16_skipped_has_no_gradient_norm(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([replace(step(1), grad_norm=None), step(2)])

    [attempt] = records(tmp_path)
    assert [row.get("grad_norm") for row in rows(attempt)] == [None, 0.5]


def test_a_gpu_that_is_known_has_its_share_of_what_it_can_compute(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([replace(step(1), mfu=0.25), step(2)])

    [attempt] = records(tmp_path)
    assert [row.get("mfu") for row in rows(attempt)] == [0.25, None]


def test_an_evaluation_stands_in_the_row_of_its_step(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(5), step(10)])
        tracked.on_evaluation(evaluation(10, 1.75, without=2))
        tracked.on_steps([step(15)])

    [attempt] = records(tmp_path)
    by_step = {row["global_step"]: row for row in rows(attempt)}
    assert {name: by_step[10][name] for name in by_step[10].keys() - by_step[5].keys()} == {
        "val_loss": 1.75,
        "val_ppl": pytest.approx(math.exp(1.75)),
        "best_val_loss": 1.5,
        "epochs_no_improve": 2,
    }
    assert "val_loss" not in by_step[15]


def test_the_end_has_the_test_figures_and_a_table_of_the_epochs(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1, 3.0), step(2, 2.0)])
        tracked.on_evaluation(evaluation(2, 1.75))
        tracked.on_steps([step(4, 1.0, epoch=1)])
        end = finished(tmp_path, steps=4, test_loss=1.25)
        tracked.end(replace(end, performance=PERFORMANCE))

    [attempt] = records(tmp_path)
    last = rows(attempt)[-1]
    for name in ("peak_memory_bytes", "flops_per_token", "flops_source"):
        assert last[name] == getattr(PERFORMANCE, name)
    assert (last["global_step"], last["early_stopped"], last["test_loss"]) == (4, True, 1.25)
    assert last["test_ppl"] == pytest.approx(math.exp(1.25))
    [table] = tmp_path.glob("tracked/wandb/offline-run-*/files/media/table/epoch_summary*.json")
    columns = ["epoch", "train_loss", "train_ppl", "val_loss", "val_ppl"]
    assert json.loads(table.read_bytes())["columns"] == columns
    assert json.loads(table.read_bytes())["data"] == [
        [0, 2.5, pytest.approx(math.exp(2.5)), 1.75, pytest.approx(math.exp(1.75))],
        [1, 1.0, pytest.approx(math.e), None, None],
    ]
    assert exit_code(attempt) == 0


def test_without_a_test_split_there_are_no_test_figures(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_evaluation(evaluation(3, 1.75))
        tracked.end(finished(tmp_path, steps=3, test_loss=None))

    [attempt] = records(tmp_path)
    assert rows(attempt)[-1].keys().isdisjoint({"test_loss", "test_ppl"})
    assert rows(attempt)[0]["val_loss"] == 1.75


def test_the_run_has_its_own_name_its_project_and_its_whole_spec(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log):
        pass

    [attempt] = records(tmp_path)
    run = one(attempt, "run")
    assert (run["run_id"], run["project"], run["resume"]) == (RUN, "stories", True)
    config = run["config"]
    assert isinstance(config, dict)
    expected = json.loads(json.dumps(asdict(SPEC)))
    assert {name: config["update"].get(name) for name in expected} == expected


def test_the_config_says_what_each_attempt_made_of_what_was_left_to_it(
    tmp_path: Path, log: JobLog
) -> None:
    for threads in (2, 3):
        with tracker(tmp_path, log) as tracked:
            tracked.on_start(replace(START, spec=replace(START.spec, data_num_workers=threads)))
            tracked.on_steps([step(threads)])
        time.sleep(1.1)  # wandb names the folder of an attempt by the second

    assert warnings(tmp_path) == []
    for attempt, threads in zip(records(tmp_path), (2, 3), strict=True):
        config = one(attempt, "config")
        assert config["update"] == START.spec.worker_choices | {"data_num_workers": threads}


def test_the_curve_is_drawn_over_the_step(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log):
        pass

    [attempt] = records(tmp_path)
    metric = one(attempt, "metric")
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "global_step")


def test_an_attempt_that_resumes_goes_on_without_going_back(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1, 2.0), step(10, 3.0), step(20, 2.0)])
        tracked.end(Stopped(reason=StopReason.DRAIN, step=20, checkpoint=tmp_path))
    time.sleep(1.1)  # wandb names the folder of an attempt by the second
    with tracker(tmp_path, log) as tracked:
        # From a checkpoint at step 15, with an evaluation that the drain came before.
        tracked.on_steps([step(20, 2.0)])
        tracked.on_evaluation(evaluation(20, 1.75))
        tracked.on_steps([step(30, 1.0, epoch=1)])
        tracked.end(finished(tmp_path, steps=30, test_loss=1.0))

    attempts = records(tmp_path)
    assert [[row["_step"] for row in rows(attempt)] for attempt in attempts] == [
        [1, 10],
        [20, 30, 31],
    ]
    assert rows(attempts[1])[0]["val_loss"] == 1.75
    assert rows(attempts[1])[0]["train_loss"] == 2.0
    assert {one(attempt, "run")["run_id"] for attempt in attempts} == {RUN}
    assert any(record["type"] == "preempting" for record in attempts[0])
    assert [exit_code(attempt) for attempt in attempts] == [1, 0]
    [table] = tmp_path.glob("tracked/wandb/offline-run-*/files/media/table/epoch_summary*.json")
    assert [line[:2] for line in json.loads(table.read_bytes())["data"]] == [
        [0, pytest.approx(7 / 3)],
        [1, 1.0],
    ]


def test_a_run_that_is_cancelled_shows_its_last_step(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1), step(2)])
        tracked.end(Stopped(reason=StopReason.CANCEL, step=2, checkpoint=None))

    [attempt] = records(tmp_path)
    assert [row["_step"] for row in rows(attempt)] == [1, 2]
    assert exit_code(attempt) == 1


def test_it_is_off_unless_it_is_switched_on(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log, enabled=False) as tracked:
        tracked.on_steps([step(1)])
        tracked.on_evaluation(evaluation(1, 1.0))
        assert "wandb" not in {thread.name for thread in threading.enumerate()}

    assert not (tmp_path / "tracked").exists()
    assert warnings(tmp_path) == []


def test_without_the_package_there_is_one_warning_and_training_goes_on(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('there is none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with tracker(tmp_path, log) as tracked:
        for number in range(50):
            tracked.on_steps([step(number)])

    [warning] = warnings(tmp_path)
    assert "extra wandb" in warning


def test_without_a_key_there_is_one_warning_and_training_goes_on(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")

    assert "API key" in only_warning(tmp_path, log)


@pytest.mark.usefixtures("hanging_server")
def test_a_server_that_never_answers_is_given_up(tmp_path: Path, log: JobLog) -> None:
    with tracker(tmp_path, log, init_seconds=1.0) as tracked:
        began = time.monotonic()
        for number in range(500):
            tracked.on_steps([step(number)])
        assert time.monotonic() - began < 0.5

    [warning] = warnings(tmp_path)
    assert warning.startswith("Weights & Biases is switched off: CommError")


@pytest.mark.usefixtures("hanging_server")
def test_the_end_of_a_run_waits_a_little_for_a_server_that_hangs(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log, init_seconds=3.0, close_seconds=0.5) as tracked:
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    written = warnings(tmp_path)

    tracked._thread.join(PATIENCE_SECONDS)  # it fails after the log was closed
    assert written == ["Weights & Biases has not taken everything yet"]
    assert warnings(tmp_path) == written


def test_what_cannot_wait_any_more_ends_the_tracking_and_not_the_run(
    tmp_path: Path, log: JobLog
) -> None:
    with tracker(tmp_path, log, waiting=3) as tracked:
        for number in range(100):  # while wandb still starts
            tracked.on_steps([step(number)])

    assert warnings(tmp_path) == [
        "Weights & Biases is switched off: it has not taken 3 steps in time"
    ]
    tracked._thread.join(PATIENCE_SECONDS)
    [attempt] = records(tmp_path)
    assert len(rows(attempt)) < 100
    assert exit_code(attempt) == 1


def test_a_broken_memory_ends_the_tracking_and_not_the_run(tmp_path: Path, log: JobLog) -> None:
    memory = tmp_path / "runs" / RUN / "tracked.json"
    memory.parent.mkdir(parents=True)
    memory.write_text("{")

    assert "JSONDecodeError" in only_warning(tmp_path, log)


def test_offline_nothing_is_sent_anywhere(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch, silent_server: socket.socket
) -> None:
    address = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
    for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1)])
        tracked.end(replace(finished(tmp_path, steps=1, test_loss=1.0), early_stopped=False))

    assert len(records(tmp_path)) == 1
    silent_server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        silent_server.accept()
