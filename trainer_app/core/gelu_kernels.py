"""A GPU kernel for GELU's gradient. Written in Triton: import this where there is a GPU alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

# gelu(x) = x sigmoid(SLOPE (x + CUBE x^3)), the form with tanh (Hendrycks and Gimpel 2016)
SLOPE: Final = 1.5957691216057308
CUBE: Final = 0.044715

# Of a program, measured on an H200: what it reads at once, and how far down it goes.
COLUMNS: Final = 128
ROWS_AT_ONCE: Final = 8
ROWS: Final = 512
WARPS: Final = 4


@triton.jit
def _gelu_gradient(  # noqa: PLR0917 - a launch passes them so
    grad: tl.tensor,
    u: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    rows: int,
    width: int,
    slope: float,
    cube: float,
    columns: tl.constexpr,
    at_once: tl.constexpr,
    deep: tl.constexpr,
) -> None:
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    total = tl.full((at_once, columns), 0.0, tl.float32)
    for down in range(0, deep, at_once):
        row = (tl.program_id(1) * deep + down + tl.arange(0, at_once)).to(tl.int64)
        at = tl.expand_dims(row * width, 1) + tl.expand_dims(column, 0)
        mask = tl.expand_dims(row < rows, 1) & tl.expand_dims(column < width, 0)
        x = tl.load(u + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(slope * (x + cube * x * x * x))
        g = g * (s + x * s * (1.0 - s) * slope * (1.0 + 3.0 * cube * x * x))
        rounded = g.to(out.dtype.element_ty)
        tl.store(out + at, rounded, mask=mask)
        total += rounded.to(tl.float32)
    place = sums + tl.program_id(1).to(tl.int64) * width + column
    tl.store(place, tl.sum(total, 0), mask=column < width)


def gelu_gradient(grad_MF: Tensor, u_MF: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of u from that of gelu(u), in the precision of u; both are contiguous.

    Last, sums of its rows (P, F), to be summed up: the gradient of a bias that u has.
    """
    rows, width = u_MF.shape
    out_MF = torch.empty_like(u_MF)
    sums_PF = u_MF.new_empty(sums_of(rows), width, dtype=torch.float32)
    _gelu_gradient[triton.cdiv(width, COLUMNS), len(sums_PF)](
        grad_MF,
        u_MF,
        out_MF,
        sums_PF,
        rows,
        width,
        SLOPE,
        CUBE,
        COLUMNS,
        ROWS_AT_ONCE,
        ROWS,
        num_warps=WARPS,
    )
    return out_MF, sums_PF


def sums_of(rows: int) -> int:
    """How many sums are left of so many rows."""
    return int(triton.cdiv(rows, ROWS))
