"""How fast a run is, against what its processor could do.

Model FLOPs utilisation as in Chowdhery et al. 2022 (PaLM), appendix B: the operations that the
model's mathematics asks for, whatever is computed again or padded, over the processor's peak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer_app.core.muon import hidden_matrices

if TYPE_CHECKING:
    from backends.contracts import CausalModel
    from trainer_app.core.device import ResolvedPrecision

# TFLOP/s of dense products, by the vendor's datasheets: (halves, float32 outside tensor cores). Of
# two names that a card's has in it, the first counts.
PEAKS: Final[tuple[tuple[str, tuple[float, float]], ...]] = (
    ("B200", (2250.0, 75.0)),
    ("H200", (989.0, 67.0)),
    ("H100 PCIe", (756.0, 51.0)),
    ("H100 NVL", (835.0, 60.0)),
    ("H100", (989.0, 67.0)),
    ("A100", (312.0, 19.5)),
    ("L40S", (362.0, 91.6)),
    ("L4", (121.0, 30.3)),
    ("A10", (125.0, 31.2)),
    ("V100", (125.0, 15.7)),
    ("T4", (65.0, 8.1)),
    ("RTX 4090", (165.2, 82.6)),
    ("RTX 3090", (71.0, 35.6)),
)


FLOPS_SOURCE: Final = (
    "counted, not measured: 6 x weights in products, head included, + 12 x layers x heads x head "
    "width x max_seq_len (Chowdhery et al. 2022, appendix B)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """Of the steps of a run's last attempt, evaluations and checkpoints aside."""

    tokens_per_sec: float
    step_ms: float
    flops_per_token: int  # of a training step, forward and backward
    flops_source: str = FLOPS_SOURCE  # how they were counted
    mfu: float | None  # between 0 and 1; None: the processor's peak is not known here
    peak_memory_bytes: int  # of the GPU, taken from its driver; on a CPU the process's resident


def flops_per_token(model: CausalModel, seq_len: int) -> int:
    """Floating-point operations that training asks for, per token.

    FLOPS_SOURCE in words: 6 for each weight that a token is multiplied with (2 forward, 4
    backward), and 12 x layers x heads x head width x T for attention's two products, which are
    counted whole though a causal mask leaves half of them out.
    """
    weights = sum(matrix.numel() for matrix in hidden_matrices(model, frozen=True))
    return 6 * (weights + model.head_weight().numel()) + 12 * model.attention_width * seq_len


def peak_flops(device_name: str, precision: ResolvedPrecision) -> float | None:
    """Operations a second that a GPU of this name does at most; None where it is not known.

    fp8 is measured by the peak of halves, so that its gain shows.
    """
    for name, (half, single) in PEAKS:
        if re.search(rf"\b{name}\b", device_name) and "MIG" not in device_name:
            return 1e12 * (single if precision == "fp32" else half)
    return None
