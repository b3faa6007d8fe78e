"""Checks a curve against the hash chain that its run has kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer_app.core.loss_chain import START, link
from trainer_app.replies import MetricPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of the check."""

    ok: bool
    message: str
    steps: int  # points with a training loss that were found right


def check_curve(points: Sequence[MetricPoint], manifest: Mapping[str, object]) -> Verdict:
    """Recompute the chain from all points of a run's curve, and compare with its manifest."""
    expected = manifest.get("loss_chain")
    if expected is None:
        return Verdict(ok=False, message="the manifest has no loss_chain", steps=0)
    chain, steps, wrong = _follow(points)
    if wrong is not None:
        return _another(wrong, steps)
    if chain != expected:
        message = f"the curve ends at another value than the manifest's, after {steps} steps"
        return Verdict(ok=False, message=message, steps=steps)
    return Verdict(ok=True, message=f"verified: {steps} steps, chain {chain}", steps=steps)


def check_unfinished_curve(
    points: Sequence[MetricPoint],
    *,
    loss_chain: str | None = None,
    loss_chain_step: int | None = None,
) -> Verdict:
    """Recompute the chain of a run without a manifest, and compare with what its points kept.

    ``loss_chain``: what the run has kept with its newest checkpoint, after ``loss_chain_step``. It
    is that of the last step before it which is in the curve, ``logging_steps`` apart: the points
    up to there must come to it. That none is missing behind it only a manifest can tell, and
    without it (None) nothing but that no point is missing before another.

    What an attempt measured beyond the last one's end is no part of the run: the last went on from
    a checkpoint before, and may have measured otherwise.
    """
    reached = loss_chain_step or 0
    last_attempt = max((point["attempt"] for point in points), default=0)
    end = max((point["step"] for point in points if point["attempt"] == last_attempt), default=0)
    end = max(end, reached)
    measured = [
        point for point in points if point["train_loss"] is not None and point["step"] <= end
    ]
    if not measured and not reached:
        return Verdict(ok=False, message="the curve has no training loss yet", steps=0)
    if measured and all(point["chain"] is None for point in measured):
        return Verdict(ok=False, message="the run has kept no chain", steps=0)
    if loss_chain is not None:
        chain, steps, wrong = _follow([point for point in measured if point["step"] <= reached])
        if wrong is None and chain != loss_chain:
            message = (
                f"the curve lacks points, or has others, up to step {reached}, where the newest "
                "checkpoint is"
            )
            return Verdict(ok=False, message=message, steps=steps)
    chain, steps, wrong = _follow(measured)
    if wrong is not None:
        return _another(wrong, steps)
    message = f"verified as far as the run has got: {steps} steps, up to {end}, chain {chain}"
    return Verdict(ok=True, message=message, steps=steps)


def _follow(points: Sequence[MetricPoint]) -> tuple[str, int, int | None]:
    """The chain's value, after how many points, and the step that it does not go on to, if any."""
    chain, steps = START, 0
    for point in points:
        step, loss = point["step"], point["train_loss"]
        if loss is None:
            continue
        after = link(chain, step, loss)
        if after != point["chain"]:
            return chain, steps, step
        chain, steps = after, steps + 1
    return chain, steps, None


def _another(step: int, steps: int) -> Verdict:
    message = f"step {step}: the curve is not the one that was measured"
    return Verdict(ok=False, message=message, steps=steps)
