"""The curve of a run."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from trainer_app.errors import LeaseLost
from trainer_app.store import lease, metrics
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, MetricPoint, Progress


def _record(database: Database, claim: Claim, *points: MetricPoint) -> None:
    lease.progress(database, claim, Progress(), points)


def test_a_point_is_read_as_it_was_written(database: Database, claim: Claim) -> None:
    point = MetricPoint(
        step=10,
        epoch=1,
        train_loss=2.5,
        val_loss=2.75,
        learning_rate=5e-4,
        grad_norm=1.25,
        tokens_per_sec=1e5,
    )
    _record(database, claim, point)
    (read,) = metrics.curve(database, claim.job_id)
    assert asdict(read) | {"at": 0.0} == asdict(point) | {"attempt": 1}
    assert read.at > 1.7e9


@pytest.mark.parametrize("at_once", [True, False])
def test_an_evaluation_adds_to_the_point_of_its_step(
    database: Database, claim: Claim, *, at_once: bool
) -> None:
    step = MetricPoint(step=10, train_loss=2.5, grad_norm=1.0)
    evaluation = MetricPoint(step=10, val_loss=2.75)
    if at_once:
        _record(database, claim, step, evaluation)
    else:
        _record(database, claim, step)
        _record(database, claim, evaluation)
    (read,) = metrics.curve(database, claim.job_id)
    assert (read.train_loss, read.val_loss, read.grad_norm) == (2.5, 2.75, 1.0)


def test_steps_done_again_overwrite_those_of_the_attempt_before(
    database: Database, claim: Claim
) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in (1, 2, 3)))
    lease.hand_back(database, claim, message="")
    again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)
    assert again is not None
    _record(database, again, *(MetricPoint(step=n, train_loss=0.5) for n in (2, 3, 4)))
    curve = metrics.curve(database, claim.job_id)
    assert [(point.step, point.attempt) for point in curve] == [(1, 1), (2, 2), (3, 2), (4, 2)]
    assert [point.train_loss for point in curve] == [1.0, 0.5, 0.5, 0.5]


def test_what_is_not_finite_was_not_measured(database: Database, claim: Claim) -> None:
    _record(database, claim, MetricPoint(step=1, train_loss=float("nan"), grad_norm=float("inf")))
    (read,) = metrics.curve(database, claim.job_id)
    assert (read.train_loss, read.grad_norm) == (None, None)


def test_a_curve_can_be_followed(database: Database, claim: Claim) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in range(1, 6)))
    curve = metrics.curve(database, claim.job_id, after_step=3)
    assert [point.step for point in curve] == [4, 5]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 50, 101])
def test_a_thinned_curve_keeps_both_ends_and_its_number(
    database: Database, claim: Claim, rows: int
) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in range(1, rows + 1)))
    for points in (2, 3, 10, 50, 200):
        steps = [point.step for point in metrics.curve(database, claim.job_id, points=points)]
        assert len(steps) == min(rows, points)
        assert (steps[0], steps[-1]) == (1, rows)
        assert steps == sorted(set(steps))


def test_a_curve_is_thinned_the_same_on_both_databases(database: Database, claim: Claim) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in range(1, 102)))
    curve = metrics.curve(database, claim.job_id, points=11)
    assert [point.step for point in curve] == list(range(1, 102, 10))


def test_a_thinned_curve_prefers_evaluations(database: Database, claim: Claim) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in range(1, 102)))
    _record(database, claim, *(MetricPoint(step=n, val_loss=1.0) for n in (37, 75)))
    steps = [point.step for point in metrics.curve(database, claim.job_id, points=11)]
    assert {1, 37, 75, 101} <= set(steps)
    assert len(steps) == 11


def test_a_run_without_points_has_an_empty_curve(database: Database, run_id: str) -> None:
    assert metrics.curve(database, run_id) == []
    assert metrics.curve(database, run_id, points=10) == []


def test_a_newer_attempt_has_the_say_and_an_older_one_fills_gaps(
    database: Database, claim: Claim
) -> None:
    known = [MetricPoint(step=n, train_loss=1.0, chain=f"{n}", attempt=2) for n in (1, 2)]
    _record(database, claim, *known, MetricPoint(step=4, val_loss=1.0, attempt=2))
    offered = [
        MetricPoint(step=1, train_loss=0.5, chain="other", attempt=1),  # measured again since
        MetricPoint(step=2, train_loss=0.5, chain="other", attempt=3),
        MetricPoint(step=3, train_loss=0.5, attempt=1),
        MetricPoint(step=4, train_loss=0.5, attempt=1),
        MetricPoint(step=4, val_loss=1.0, attempt=3),  # the same again
    ]
    assert metrics.lacking(database, claim.job_id, offered) == offered[1:4]
    _record(database, claim, MetricPoint(step=1, train_loss=0.5, val_loss=2.0, attempt=1))
    first = metrics.curve(database, claim.job_id)[0]
    assert (first.train_loss, first.val_loss, first.attempt) == (1.0, 2.0, 2)


def test_a_curve_is_cut_where_its_run_has_ended(database: Database, claim: Claim) -> None:
    _record(database, claim, *(MetricPoint(step=n, train_loss=1.0) for n in (1, 2, 3, 4)))
    metrics.cut(database, claim, after=2)
    assert [point.step for point in metrics.curve(database, claim.job_id)] == [1, 2]
    lease.hand_back(database, claim, message="")
    with pytest.raises(LeaseLost):
        metrics.cut(database, claim, after=1)
