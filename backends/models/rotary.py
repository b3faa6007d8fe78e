"""Rotary positions (Su et al.: RoFormer, 2021): queries and keys are turned by their position.

The pairs that turn together are (c, c + C/2), as in transformers. Shapes in names: B sequences,
H heads, T tokens, S positions, C head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_tables(
    positions: int, head_width: int, theta: float, *, device: str
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, (S, C/2) each, in float32.

    Pair c of position s turns by s / theta^(2c/C). ``theta``: larger turns slower.
    """
    exponent_C = torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width
    at_S = torch.arange(positions, dtype=torch.float32, device=device)
    angle_SC = torch.outer(at_S, 1.0 / theta**exponent_C)
    return angle_SC.cos(), angle_SC.sin()


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
