"""GPU kernels for fp8: what the products read, made together with what comes before them.

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
from trainer_app.core.kernels import LOG2_E, LOGITS_PER_WARP, blocks_of, log2_of_total
from trainer_app.core.padding import EIGHT_BITS, padded

if TYPE_CHECKING:
    from torch import Tensor

FORWARD_WARPS: Final = 16  # measured on an H100, like PROGRAMS of fp8.py
BACKWARD_WARPS: Final = 8
TILE_ROWS: Final = 128  # of what is transposed; measured on an H200, as what follows
TILE_COLUMNS: Final = 128
FOLDED_COLUMNS: Final = 64
NUMBERS_PER_WARP: Final = 256

# The gradient of a row of logits has its largest number at the target. It is in float8_e5m2, for
# most of the others are a millionth of it. A power of two is rounded to itself, with room above.
GRADIENT: Final = torch.float8_e5m2
TOP_GRADIENT: Final = 32_768.0
SMALLEST_GRADIENT: Final = 1e-6  # for 1 - p, of which roundings are about all that is left there


@triton.jit
def _gelu_in_fp8(  # noqa: PLR0917 - a launch passes them so
    u: tl.tensor,
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
    top = tl.maximum(tl.max(tl.abs(g), 0), smallest)
    tl.store(y8 + row * columns + at, (g * (largest / top)).to(tl.float8e4nv), mask=mask)
    tl.store(scales + row, top / largest)


@triton.jit
def _gelu_gradient_in_fp8(  # noqa: PLR0917 - a launch passes them so
    grad: tl.tensor,
    u: tl.tensor,
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
        total += g
        top = tl.maximum(tl.max(tl.abs(g), 0), smallest)
        tl.store(out8 + first + at, (g * (largest / top)).to(tl.float8e4nv), mask=mask)
        tl.store(scales + row, top / largest)
    tl.store(sums + tl.cast(program, tl.int64) * columns + at, total, mask=mask)


def gelu_in_fp8(u_MF: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(u) in fp8, and the scales of its rows (M, 1)."""
    rows, columns = u_MF.shape
    y8_MF = torch.empty_like(u_MF, dtype=FP8)
    scales_M1 = u_MF.new_empty(rows, 1, dtype=torch.float32)
    _gelu_in_fp8[(rows,)](
        u_MF,
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
    return y8_MF, scales_M1


def gelu_gradient_in_fp8(grad_MF: Tensor, u_MF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of u from that of gelu(u), in fp8, and the scales of its rows (M, 1).

    Last, sums of its rows (P, F), to be summed up: the gradient of a bias that u has.
    """
    rows, columns = u_MF.shape
    out8_MF = torch.empty_like(u_MF, dtype=FP8)
    scales_M1 = u_MF.new_empty(rows, 1, dtype=torch.float32)
    sums_PF = u_MF.new_empty(programs(u_MF), columns, dtype=torch.float32)
    _gelu_gradient_in_fp8[(len(sums_PF),)](
        grad_MF,
        u_MF,
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
    return out8_MF, scales_M1, sums_PF


@triton.jit
def _rows_in_fp8(  # noqa: PLR0917 - a launch passes them so
    x: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    rows: int,
    columns: int,
    largest: float,
    smallest: float,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    mask = at < columns
    numbers = tl.load(x + row * columns + at, mask=mask & (row < rows), other=0.0).to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(numbers), 0), smallest)
    tl.store(out + row * columns + at, (numbers * (largest / top)).to(tl.float8e4nv), mask=mask)
    tl.store(scales + row, top / largest)


def rows_in_fp8(x_MK: Tensor, *, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """What ``in_fp8`` gives, in one pass; with rows of zeros behind, so that there are ``rows``."""
    count, columns = x_MK.shape
    rows = count if rows is None else rows
    out_RK = x_MK.new_empty(rows, columns, dtype=FP8)
    scales_R1 = x_MK.new_empty(rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(columns)
    warps = max(1, min(16, block // NUMBERS_PER_WARP))
    launch = _rows_in_fp8[(rows,)]
    launch(x_MK, out_RK, scales_R1, count, columns, LARGEST, SMALLEST_ROW, block, num_warps=warps)
    return out_RK, scales_R1


@triton.jit
def _transposed(  # noqa: PLR0917 - a launch passes them so
    x: tl.tensor,
    out: tl.tensor,
    rows: int,
    columns: int,
    out_rows: int,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
) -> None:
    across = tl.cdiv(columns, tile_columns)
    tile = tl.program_id(0)  # of the one axis of a grid that is as long as may be
    column = (tile % across * tile_columns + tl.arange(0, tile_columns)).to(tl.int64)
    row = (tile // across * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    inside = tl.expand_dims(column < columns, 0)
    mask = tl.expand_dims(row < rows, 1) & inside
    numbers = tl.load(
        x + tl.expand_dims(row * columns, 1) + tl.expand_dims(column, 0), mask=mask, other=0
    )
    to = out + tl.expand_dims(column * out_rows, 1) + tl.expand_dims(row, 0)
    mask = tl.expand_dims(column < columns, 1) & tl.expand_dims(row < out_rows, 0)
    tl.store(to, tl.trans(numbers), mask=mask)


def transposed(x8_MN: Tensor) -> Tensor:
    """Numbers of eight bits, (N, M), with zeros behind the M to a multiple that is multiplied."""
    rows, columns = x8_MN.shape
    out_NM = x8_MN.new_empty(columns, padded(rows, EIGHT_BITS))
    tiles = triton.cdiv(columns, TILE_COLUMNS) * triton.cdiv(out_NM.shape[1], TILE_ROWS)
    _transposed[(tiles,)](
        x8_MN.view(torch.uint8),
        out_NM.view(torch.uint8),
        rows,
        columns,
        out_NM.shape[1],
        TILE_ROWS,
        TILE_COLUMNS,
        num_warps=8,
    )
    return out_NM


@triton.jit
def _folded(  # noqa: PLR0917 - a launch passes them so
    x: tl.tensor,
    scales: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    rows: int,
    columns: int,
    out_rows: int,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
) -> None:
    across = tl.cdiv(columns, tile_columns)
    tile = tl.program_id(0)  # of the one axis of a grid that is as long as may be
    column = (tile % across * tile_columns + tl.arange(0, tile_columns)).to(tl.int64)
    row = (tile // across * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    mask = tl.expand_dims(row < rows, 1) & tl.expand_dims(column < columns, 0)
    numbers = tl.load(
        x + tl.expand_dims(row * columns, 1) + tl.expand_dims(column, 0), mask=mask, other=0.0
    ).to(tl.float32)
    factor = tl.load(scales + row, mask=row < rows, other=0.0) / tl.load(scale)
    numbers = (numbers * tl.expand_dims(factor, 1)).to(tl.float8e4nv)
    to = out + tl.expand_dims(column * out_rows, 1) + tl.expand_dims(row, 0)
    mask = tl.expand_dims(column < columns, 1) & tl.expand_dims(row < out_rows, 0)
    tl.store(to, tl.trans(numbers), mask=mask)


def folded(x_MN: Tensor, scale_M1: Tensor, scale: Tensor, *, rows: int | None = None) -> Tensor:
    """x times the scales of its rows over one scale, in fp8, (N, M), behind the M zeros as above.

    ``rows``: where there are to be more of the M. The largest number is to be 448 at most.
    """
    count, columns = x_MN.shape
    out_NM = x_MN.new_empty(columns, padded(count, EIGHT_BITS) if rows is None else rows, dtype=FP8)
    tiles = triton.cdiv(columns, FOLDED_COLUMNS) * triton.cdiv(out_NM.shape[1], TILE_ROWS)
    _folded[(tiles,)](
        x_MN,
        scale_M1,
        scale,
        out_NM,
        count,
        columns,
        out_NM.shape[1],
        TILE_ROWS,
        FOLDED_COLUMNS,
        num_warps=4,
    )
    return out_NM


@triton.jit
def _cross_entropy_in_fp8(  # noqa: PLR0917 - a launch passes them so
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    gradient: tl.tensor,
    scales: tl.tensor,
    vocab: int,
    stride: int,
    largest: float,
    smallest: float,
    block: tl.constexpr,
    blocks: tl.constexpr,
    written: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    gradient += row * stride
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32) * LOG2_E
    log_total = log2_of_total(logits, vocab, stride, block, blocks)
    tl.store(losses + row, (log_total - wanted) / LOG2_E)
    missing = 1.0 - tl.exp2(wanted - log_total)
    most = tl.where(missing < smallest, smallest, missing)  # nan stays nan
    tl.store(scales + row, most / largest)
    factor = largest / most
    shift = tl.log2(factor) - log_total
    for start in range(0, stride, written):
        columns = start + tl.arange(0, written)
        x = tl.load(logits + columns, mask=columns < stride, other=0.0).to(tl.float32)
        x = tl.where(columns < vocab, x, float("-inf"))
        # not by a difference: of a target that is all but certain roundings would be left
        g = tl.where(columns == target, -missing * factor, tl.exp2(x * LOG2_E + shift))
        tl.store(gradient + columns, g.to(tl.float8e5), mask=columns < stride)


def cross_entropy_in_fp8(
    logits_NP: Tensor, targets_N: Tensor, *, vocab: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The negative log-likelihood of each target (N,), in nats, in float32; its gradient in fp8.

    That is (N, P), softmax - onehot over the scale of its row, which comes last (N, 1). Of the P
    columns of ``logits_NP``, which is contiguous, the first ``vocab`` count.
    """
    count, stride = logits_NP.shape
    losses_N = logits_NP.new_empty(count, dtype=torch.float32)
    gradient_NP = torch.empty_like(logits_NP, dtype=GRADIENT)
    scales_N1 = logits_NP.new_empty(count, 1, dtype=torch.float32)
    blocks = blocks_of(stride)
    _cross_entropy_in_fp8[(count,)](
        logits_NP,
        targets_N,
        losses_N,
        gradient_NP,
        scales_N1,
        vocab,
        stride,
        TOP_GRADIENT,
        SMALLEST_GRADIENT,
        *blocks,
        num_warps=max(1, blocks[-1] // LOGITS_PER_WARP),
    )
    return losses_N, gradient_NP, scales_N1
