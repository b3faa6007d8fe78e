"""A curve is checked against the chain in its manifest, or against its own."""

from __future__ import annotations

from trainer_app.core.loss_chain import START, link
from trainer_app.replies import MetricPoint
from trainer_app.verify import check_curve, check_unfinished_curve


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


def test_a_run_that_has_measured_nothing_or_kept_no_chain_is_not_verified() -> None:
    assert check_unfinished_curve([]).message == "the curve has no training loss yet"
    assert check_unfinished_curve(curve()[1:2]).message == "the curve has no training loss yet"
    points = curve()
    for point in points:
        point["chain"] = None
    verdict = check_unfinished_curve(points)
    assert (verdict.ok, verdict.message) == (False, "the run has kept no chain")
