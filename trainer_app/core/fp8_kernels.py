"""GPU kernels for fp8: GELU and its gradient, each together with what the product after it reads.

The scale of a row is known once all of the row is. torch's compiler makes two passes of that, and
computes all twice; here a row stays in a program's registers. Written in Triton: import this where
there is a GPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

from trainer_app.core.fp8 import FP8, LARGEST, SMALLEST_ROW, programs
from trainer_app.core.gelu_kernels import CUBE, SLOPE

if TYPE_CHECKING:
    from torch import Tensor

FORWARD_WARPS: Final = 16  # measured on an H100, like PROGRAMS of fp8.py
BACKWARD_WARPS: Final = 8


@triton.jit
def _gelu_in_fp8(  # noqa: PLR0917 - a launch passes them so
    u: tl.tensor,
    y: tl.tensor,
    y8: tl.tensor,
    scales: tl.tensor,
    columns: int,
    largest: float,
    smallest: float,
    slope: float,
    cube: float,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    mask = at < columns
    x = tl.load(u + row * columns + at, mask=mask, other=0.0).to(tl.float32)
    g = x * tl.sigmoid(slope * (x + cube * x * x * x))
    rounded = g.to(y.dtype.element_ty)
    tl.store(y + row * columns + at, rounded, mask=mask)
    g = rounded.to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(g), 0), smallest)
    tl.store(y8 + row * columns + at, (g * (largest / top)).to(tl.float8e4nv), mask=mask)
    tl.store(scales + row, top / largest)


@triton.jit
def _gelu_gradient_in_fp8(  # noqa: PLR0917 - a launch passes them so
    grad: tl.tensor,
    u: tl.tensor,
    out: tl.tensor,
    out8: tl.tensor,
    scales: tl.tensor,
    sums: tl.tensor,
    rows: int,
    columns: int,
    largest: float,
    smallest: float,
    slope: float,
    cube: float,
    block: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    at = tl.arange(0, block)
    mask = at < columns
    total = tl.full((block,), 0.0, tl.float32)
    for row in tl.range(program, rows, tl.num_programs(0)):
        first = tl.cast(row, tl.int64) * columns
        x = tl.load(u + first + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + first + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(slope * (x + cube * x * x * x))
        g = g * (s + x * s * (1.0 - s) * slope * (1.0 + 3.0 * cube * x * x))
        rounded = g.to(out.dtype.element_ty)
        tl.store(out + first + at, rounded, mask=mask)
        g = rounded.to(tl.float32)
        total += g
        top = tl.maximum(tl.max(tl.abs(g), 0), smallest)
        tl.store(out8 + first + at, (g * (largest / top)).to(tl.float8e4nv), mask=mask)
        tl.store(scales + row, top / largest)
    tl.store(sums + tl.cast(program, tl.int64) * columns + at, total, mask=mask)


def gelu_in_fp8(u_MF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(u), in the precision of u; the same in fp8, and the scales of its rows (M, 1)."""
    rows, columns = u_MF.shape
    y_MF = torch.empty_like(u_MF)
    y8_MF = torch.empty_like(u_MF, dtype=FP8)
    scales_M1 = u_MF.new_empty(rows, 1, dtype=torch.float32)
    _gelu_in_fp8[(rows,)](
        u_MF,
        y_MF,
        y8_MF,
        scales_M1,
        columns,
        LARGEST,
        SMALLEST_ROW,
        SLOPE,
        CUBE,
        triton.next_power_of_2(columns),
        num_warps=FORWARD_WARPS,
    )
    return y_MF, y8_MF, scales_M1


def gelu_gradient_in_fp8(grad_MF: Tensor, u_MF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of u from that of gelu(u): itself, in fp8, and the scales of its rows (M, 1).

    Last, sums of its rows (P, F), to be summed up: the gradient of a bias that u has.
    """
    rows, columns = u_MF.shape
    out_MF = torch.empty_like(u_MF)
    out8_MF = torch.empty_like(u_MF, dtype=FP8)
    scales_M1 = u_MF.new_empty(rows, 1, dtype=torch.float32)
    sums_PF = u_MF.new_empty(programs(u_MF), columns, dtype=torch.float32)
    _gelu_gradient_in_fp8[(len(sums_PF),)](
        grad_MF,
        u_MF,
        out_MF,
        out8_MF,
        scales_M1,
        sums_PF,
        rows,
        columns,
        LARGEST,
        SMALLEST_ROW,
        SLOPE,
        CUBE,
        triton.next_power_of_2(columns),
        num_warps=BACKWARD_WARPS,
    )
    return out_MF, out8_MF, scales_M1, sums_PF
