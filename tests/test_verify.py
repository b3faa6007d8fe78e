"""A curve is checked against the chain in its manifest, or its checkpoint's and its own."""

from __future__ import annotations

import pytest

from trainer_app.core.loss_chain import START, link
from trainer_app.replies import MetricPoint
from trainer_app.verify import Verdict, check_curve, check_unfinished_curve


def curve() -> list[MetricPoint]:
    points: list[MetricPoint] = []
    chain = START
    for step, loss in ((1, 4.25), (2, None), (3, 0.1)):
        if loss is not None:
            chain = link(chain, step, loss)
        points.append(
            {
                "step": step,
                "train_loss": loss,
                "val_loss": None,
                "learning_rate": None,
                "grad_norm": None,
                "tokens_per_sec": None,
                "step_ms": None,
                "mfu": None,
                "attempt": 1,
                "chain": None if loss is None else chain,
            }
        )
    return points


def test_the_chain_depends_on_each_step_and_loss() -> None:
    assert link(START, 1, 4.25) == link(START, 1, 4.25)
    assert len({link(START, 1, 4.25), link(START, 2, 4.25), link(START, 1, 4.5)}) == 3


def test_a_curve_that_is_whole_is_verified() -> None:
    points = curve()
    verdict = check_curve(points, {"loss_chain": points[-1]["chain"]})
    assert (verdict.ok, verdict.steps) == (True, 2)


def test_a_loss_that_was_changed_is_found_at_its_step() -> None:
    points = curve()
    manifest: dict[str, object] = {"loss_chain": points[-1]["chain"]}
    points[2]["train_loss"] = 0.10000000000000002
    verdict = check_curve(points, manifest)
    assert (verdict.ok, verdict.steps) == (False, 1)
    assert verdict.message.startswith("step 3")


def test_a_curve_that_ends_early_is_not_that_of_the_manifest() -> None:
    points = curve()
    verdict = check_curve(points[:2], {"loss_chain": points[-1]["chain"]})
    assert not verdict.ok
    assert "after 1 steps" in verdict.message


def test_a_manifest_without_a_chain_verifies_nothing() -> None:
    assert not check_curve(curve(), {}).ok


def test_the_curve_of_a_run_without_a_manifest_is_verified_as_far_as_it_has_got() -> None:
    points = curve()
    verdict = check_unfinished_curve(points)
    assert (verdict.ok, verdict.steps) == (True, 2)
    assert verdict.message.endswith(f"2 steps, up to 3, chain {points[-1]['chain']}")


def test_without_a_manifest_a_loss_that_was_changed_is_found_at_its_step() -> None:
    points = curve()
    points[2]["train_loss"] = 0.10000000000000002
    verdict = check_unfinished_curve(points)
    assert (verdict.ok, verdict.steps) == (False, 1)
    assert verdict.message.startswith("step 3")


def test_without_a_manifest_a_point_that_is_missing_is_found_at_the_next() -> None:
    verdict = check_unfinished_curve(curve()[1:])
    assert (verdict.ok, verdict.steps) == (False, 0)
    assert verdict.message.startswith("step 3")


def test_what_an_attempt_measured_beyond_the_end_of_the_last_is_no_part_of_the_run() -> None:
    points = curve()
    points[0]["attempt"] = 2  # which measured anew, otherwise than the first had
    points[0]["train_loss"], points[0]["chain"] = 4.5, link(START, 1, 4.5)
    verdict = check_unfinished_curve(points)
    assert (verdict.ok, verdict.steps) == (True, 1)


def stopped_at(step: int, chain: str | None, points: list[MetricPoint]) -> Verdict:
    """Of a run whose newest checkpoint is there."""
    return check_unfinished_curve(points, loss_chain=chain, loss_chain_step=step)


@pytest.mark.parametrize("step", [3, 4, 100], ids="checkpoint at {}".format)
def test_the_curve_of_a_stopped_run_reaches_its_newest_checkpoint(step: int) -> None:
    points = curve()  # of which the last is at 3: no step after that was due to be logged
    chain = points[-1]["chain"]
    assert stopped_at(step, chain, points).ok

    for lost in (points[:2], points[:1], []):
        verdict = stopped_at(step, chain, lost)
        assert (verdict.ok, verdict.steps) == (False, len([*filter(has_loss, lost)]))
        assert f"the curve lacks points, or has others, up to step {step}" in verdict.message


def has_loss(point: MetricPoint) -> bool:
    return point["train_loss"] is not None


def test_what_a_stopped_run_measured_behind_its_checkpoint_is_checked_as_well() -> None:
    points = curve()
    chain = points[0]["chain"]
    assert stopped_at(1, chain, points).ok
    assert stopped_at(2, chain, points).ok
    assert stopped_at(2, chain, points[:1]).ok  # what is missing there nobody can tell

    points[2]["train_loss"] = 0.2
    assert stopped_at(2, chain, points).message.startswith("step 3")
    points[0]["train_loss"] = 0.2
    assert stopped_at(2, chain, points).message.startswith("step 1")


def test_a_curve_that_is_right_in_itself_but_another_than_the_checkpoints_is_found() -> None:
    points = curve()
    chain = points[2]["chain"]
    points[2]["train_loss"] = 0.2
    points[2]["chain"] = link(str(points[0]["chain"]), 3, 0.2)
    assert check_unfinished_curve(points).ok

    assert not stopped_at(3, chain, points).ok


def test_of_an_attempt_that_goes_on_from_an_earlier_checkpoint_what_lies_behind_it_is_no_part() -> (
    None
):
    points = curve()
    points[0]["attempt"] = 2  # it has come to step 1, and the first attempt's third is of no use
    points[2]["chain"] = START
    assert stopped_at(0, START, points).ok
    assert stopped_at(1, points[0]["chain"], points).ok


def test_a_run_that_has_measured_nothing_or_kept_no_chain_is_not_verified() -> None:
    assert check_unfinished_curve([]).message == "the curve has no training loss yet"
    assert stopped_at(0, START, []).message == "the curve has no training loss yet"
    assert check_unfinished_curve(curve()[1:2]).message == "the curve has no training loss yet"
    points = curve()
    for point in points:
        point["chain"] = None
    verdict = check_unfinished_curve(points)
    assert (verdict.ok, verdict.message) == (False, "the run has kept no chain")
