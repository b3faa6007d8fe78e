"""A GPU kernel for the gradient of the residual stream behind a layer.

Written in Triton: import this where there is a GPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

from trainer_app.core.residual import empty_sums

if TYPE_CHECKING:
    from torch import Tensor

# Measured on an H200, like PROGRAMS of residual.py.
AT_ONCE: Final = 2048  # numbers of a program, of one row or more
OF_A_WARP: Final = 1024  # of them, or fewer
STAGES: Final = 3  # loads of how many rounds are under way


@triton.jit
def _norm_gradient(  # noqa: PLR0917 - a launch passes them so
    grad: tl.tensor,
    x: tl.tensor,
    grad_x: tl.tensor,
    weight: tl.tensor,
    means: tl.tensor,
    rstds: tl.tensor,
    out: tl.tensor,
    out_half: tl.tensor,
    sums: tl.tensor,
    rows: int,
    width: int,
    is_last: tl.constexpr,
    is_rms: tl.constexpr,
    in_half: tl.constexpr,
    block: tl.constexpr,
    at_once: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < width
    w = tl.expand_dims(tl.load(weight + column, mask=inside, other=0.0).to(tl.float32), 0)
    of_weight = tl.full((at_once, block), 0.0, tl.float32)
    of_norm_bias = tl.full((at_once, block), 0.0, tl.float32)
    of_bias = tl.full((at_once, block), 0.0, tl.float32)
    for first in tl.range(program * at_once, rows, tl.num_programs(0) * at_once, num_stages=stages):
        row = (first + tl.arange(0, at_once)).to(tl.int64)
        there = row < rows
        at = tl.expand_dims(row * width, 1) + tl.expand_dims(column, 0)
        mask = tl.expand_dims(there, 1) & tl.expand_dims(inside, 0)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.expand_dims(tl.load(rstds + row, mask=there, other=0.0), 1)
        if not is_rms:
            v -= tl.expand_dims(tl.load(means + row, mask=there, other=0.0), 1)
        normed = v * rstd
        scaled = g * w
        along = tl.expand_dims(tl.sum(scaled * normed, 1), 1) / width
        d = scaled - normed * along
        if not is_rms:
            d -= tl.expand_dims(tl.sum(scaled, 1), 1) / width
        d *= rstd
        if not is_last:
            d += tl.load(grad_x + at, mask=mask, other=0.0).to(tl.float32)
        rounded = d.to(out.dtype.element_ty)
        tl.store(out + at, rounded, mask=mask)
        if in_half:
            rounded = rounded.to(out_half.dtype.element_ty)
            tl.store(out_half + at, rounded, mask=mask)
        of_weight += g * normed
        if not is_rms:
            of_norm_bias += g
            of_bias += rounded.to(tl.float32)
    place = sums + program.to(tl.int64) * (1 if is_rms else 3) * width + column
    tl.store(place, tl.sum(of_weight, 0), mask=inside)
    if not is_rms:
        tl.store(place + width, tl.sum(of_norm_bias, 0), mask=inside)
        tl.store(place + 2 * width, tl.sum(of_bias, 0), mask=inside)


def norm_gradient(  # noqa: PLR0917 - as its operator has them
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,
    weight_D: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x from that of norm(x), and, of what else reads x, from ``grad_x``.

    All are contiguous; ``mean`` and ``rstd`` are those of the rows of x, float32; an RMS norm has
    no mean. Returned are it in the precision of x; where ``grad`` has another, in that, too, else
    nothing (0,); and sums, to be summed up: of a layer norm (P, 3, D), the gradients of the norm's
    weight and bias, and that of a bias that x has; of an RMS norm that of its weight (P, 1, D).
    """
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty_like(x)
    in_half = grad.dtype != x.dtype
    out_half = torch.empty_like(grad) if in_half else x.new_empty(0)
    sums_PSD = empty_sums(x, mean)
    block = triton.next_power_of_2(width)
    at_once = max(1, AT_ONCE // block)
    _norm_gradient[(len(sums_PSD),)](
        grad,
        x,
        x if grad_x is None else grad_x,
        weight_D,
        rstd if mean is None else mean,
        rstd,
        out,
        out_half,
        sums_PSD,
        rows,
        width,
        grad_x is None,
        mean is None,
        in_half,
        block,
        at_once,
        STAGES,
        num_warps=at_once * block // OF_A_WARP,
    )
    return out, out_half, sums_PSD
