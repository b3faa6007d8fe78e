"""``trainer runs pause, resume, verify``."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Server, Trainer
from trainer_app import artifacts
from trainer_app.core.loss_chain import START, link
from trainer_app.store import lease
from trainer_app.store.lease import MetricPoint, Progress
from trainer_app.store.tables import Status


def finished_run(server: Server, *, chain: str) -> str:
    """A completed run of one step, whose manifest ends with ``chain``."""
    run_id = server.run()
    claim = server.claim(run_id)
    point = MetricPoint(step=1, train_loss=4.25, chain=link(START, 1, 4.25))
    lease.progress(server.database, claim, Progress(step=1), [point])
    server.finish(claim)
    staging = server.settings.paths.runs / run_id / "staging"
    staging.mkdir(parents=True)
    artifacts.publish(
        staging, artifacts.model_directory(server.settings, run_id), {"loss_chain": chain}
    )
    return run_id


def test_a_curve_that_is_whole_is_verified(server: Server, trainer: Trainer) -> None:
    run_id = finished_run(server, chain=link(START, 1, 4.25))
    answer = trainer("runs", "verify", run_id, url=server.url)
    assert answer.code == 0
    assert "verified: 1 steps" in answer.out


def test_a_curve_that_is_another_one_fails(server: Server, trainer: Trainer) -> None:
    run_id = finished_run(server, chain=START)
    answer = trainer("runs", "verify", run_id, "--json", url=server.url)
    assert answer.code == 1
    assert json.loads(answer.out)["ok"] is False


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED, Status.RUNNING])
@pytest.mark.parametrize("lost", [False, True], ids=["whole", "with a gap"])
def test_the_curve_of_a_run_that_is_not_completed_is_checked_against_its_own_chain(
    server: Server, trainer: Trainer, status: Status, lost: bool
) -> None:
    run_id = server.run()
    claim = server.claim(run_id)
    first = link(START, 1, 4.25)
    points = [
        MetricPoint(step=1, train_loss=4.25, chain=first),
        MetricPoint(step=2, train_loss=4.0, chain=link(first, 2, 4.0)),
    ]
    lease.progress(server.database, claim, Progress(step=2), points[lost:])
    if status is not Status.RUNNING:
        code = "INTERNAL_ERROR" if status is Status.FAILED else None
        server.finish(claim, status, error_code=code)

    answer = trainer("runs", "verify", run_id, url=server.url)

    assert answer.code == lost
    said = "step 2: the curve is not" if lost else "verified as far as the run has got: 2 steps"
    assert said in answer.out


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "without its end"])
def test_the_curve_of_a_stopped_run_is_checked_against_its_newest_checkpoint(
    server: Server, trainer: Trainer, lost: bool
) -> None:
    run_id = server.run()
    claim = server.claim(run_id)
    first = link(START, 1, 4.25)
    second = link(first, 2, 4.0)
    points = [
        MetricPoint(step=1, train_loss=4.25, chain=first),
        MetricPoint(step=2, train_loss=4.0, chain=second),
    ]
    told = Progress(step=2, loss_chain=second, loss_chain_step=2)
    lease.progress(server.database, claim, told, points[: 1 if lost else 2])
    server.finish(claim, Status.CANCELLED)
    shown = json.loads(trainer("runs", "show", run_id, url=server.url).out)
    assert (shown["loss_chain"], shown["loss_chain_step"]) == (second, 2)

    answer = trainer("runs", "verify", run_id, url=server.url)

    assert answer.code == lost
    assert ("the curve lacks points" if lost else "verified as far as") in answer.out


def test_a_run_is_paused_and_resumed(server: Server, trainer: Trainer) -> None:
    run_id = server.run()
    assert trainer("runs", "pause", run_id, url=server.url).out == "queued\n"
    assert "paused" in trainer("runs", "list").out
    assert json.loads(trainer("runs", "resume", run_id, "--json").out)["status"] == "queued"
    assert trainer("runs", "resume", run_id).code == 2
