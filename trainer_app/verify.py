"""Checks a curve against the hash chain that its run has kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer_app.core import loss_chain
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
    chain, steps = loss_chain.START, 0
    for point in points:
        step, loss = point["step"], point["train_loss"]
        if loss is None:
            continue
        chain = loss_chain.link(chain, step, loss)
        if chain != point["chain"]:
            message = f"step {step}: the curve is not the one that was measured"
            return Verdict(ok=False, message=message, steps=steps)
        steps += 1
    if chain != expected:
        message = f"the curve ends at another value than the manifest's, after {steps} steps"
        return Verdict(ok=False, message=message, steps=steps)
    return Verdict(ok=True, message=f"verified: {steps} steps, chain {chain}", steps=steps)
