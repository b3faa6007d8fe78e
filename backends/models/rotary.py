"""Rotary positions (Su et al.: RoFormer, 2021): queries and keys are turned by their position.

The pairs that turn together are (c, c + C/2), as in transformers. Shapes in names: B sequences,
H heads, T tokens, S positions, C head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# linear: kaiokendev; dynamic: bloc97 and emozilla; yarn: Peng et al. 2023; llama3: its config.
SCALINGS: Final = ("linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a context longer than that of the first training is reached.

    The names are those of ``rope_parameters`` in transformers; None: the method's own default.
    """

    rope_type: str  # one of SCALINGS
    factor: float  # by which slow pairs turn slower
    original_max_position_embeddings: int  # llama3, yarn: tokens of the first training
    low_freq_factor: float | None = None  # llama3: pairs with fewer turns in them are slow
    high_freq_factor: float | None = None  # llama3: those with more keep their pace
    beta_fast: float | None = None  # yarn: pairs with more turns in them keep their pace
    beta_slow: float | None = None  # yarn: those with fewer are slow
    attention_factor: float | None = None  # yarn: what queries and keys are multiplied by
    mscale: float | None = None  # yarn: weigh the logarithm that attention_factor follows from
    mscale_all_dim: float | None = None
    truncate: bool | None = None  # yarn: the bounds are whole numbers of pairs


def rotation_tables(
    positions: int, head_width: int, theta: float, *, device: str, scaling: Scaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, (S, C/2) each, in float32.

    Pair c of position s turns by s / theta^(2c/C), before any scaling. ``theta``: larger turns
    slower.
    """
    exponent_C = torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width
    pace_C, gain = 1.0 / theta**exponent_C, 1.0
    if scaling is not None:
        pace_C, gain = _scaled(pace_C, theta, scaling)
    at_S = torch.arange(positions, dtype=torch.float32, device=device)
    angle_SC = torch.outer(at_S, pace_C)
    return angle_SC.cos() * gain, angle_SC.sin() * gain


def _scaled(pace_C: Tensor, theta: float, scaling: Scaling) -> tuple[Tensor, float]:
    """The angle a position of each pair, and what cosines and sines are multiplied by."""
    if scaling.rope_type == "linear":
        return pace_C / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(pace_C, scaling), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(pace_C, theta, scaling), _yarn_gain(scaling)
    return pace_C, 1.0  # dynamic: scales what is beyond the context, and nothing here is


def _llama3(pace_C: Tensor, scaling: Scaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None
    assert high is not None
    turns_C = scaling.original_max_position_embeddings * pace_C / (2 * math.pi)
    kept_C = ((turns_C - low) / (high - low)).clamp(0, 1)
    return torch.lerp(pace_C / scaling.factor, pace_C, kept_C)


def _yarn(pace_C: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """Section 3.2 of the paper: pairs between the two bounds are scaled in part."""
    pairs = len(pace_C)

    def pair_of(turns: float) -> float:
        """The pair, as a real number, that makes so many turns in the original context."""
        longest = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return pairs * math.log(longest) / math.log(theta)

    first, last = pair_of(scaling.beta_fast or 32.0), pair_of(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    if first == last:
        last += 0.001  # as transformers does: one step
    pair_C = torch.arange(pairs, dtype=torch.float32, device=pace_C.device)
    slowed_C = ((pair_C - first) / (last - first)).clamp(0, 1)
    return torch.lerp(pace_C, pace_C / scaling.factor, slowed_C)


def _yarn_gain(scaling: Scaling) -> float:
    """Section 3.4: attention over more tokens is sharpened."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def gain(weight: float) -> float:
        return 1.0 + 0.1 * weight * math.log(max(scaling.factor, 1.0))

    if scaling.mscale and scaling.mscale_all_dim:
        return gain(scaling.mscale) / gain(scaling.mscale_all_dim)
    return gain(1.0)


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Queries or keys, turned."""
    first_BHTC, second_BHTC = x_BHTC.chunk(2, dim=-1)
    return torch.cat(
        (
            first_BHTC * cos_TC - second_BHTC * sin_TC,
            second_BHTC * cos_TC + first_BHTC * sin_TC,
        ),
        dim=-1,
    )
