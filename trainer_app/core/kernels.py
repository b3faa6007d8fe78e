"""GPU kernels of our own, for what neither torch nor its compiler does in so few passes.

Written in Triton, which comes with torch's builds for CUDA: import this where there is a GPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

# Of the loss, measured on an H200: logits that a program reads at once, so many times, for their
# sum; then those for which it writes the gradient. Most are still in the GPU's cache by then.
READ_BLOCK: Final = 2048
READ_BLOCKS: Final = 4
WRITTEN_BLOCK: Final = 4096
LOGITS_PER_WARP: Final = 256
LOG2_E: Final = tl.constexpr(1.4426950408889634)

SCALED: Final = 2048  # numbers that a program multiplies by one scale

# Of the optimizer: numbers that a program changes, and partial sums that one adds at a time.
CHUNK: Final = 1024
CHUNK_WARPS: Final = 4
SUMS: Final = 4096
COLUMNS: Final = 5  # of the table: addresses of parameter, gradient and both means; numbers in each


@triton.jit
def _logits(  # noqa: PLR0917 - Triton's functions take no names
    read: tl.tuple,
    logits: tl.tensor,
    start: int,
    vocab: int,
    stride: int,
    block: tl.constexpr,
    blocks: tl.constexpr,
) -> tl.tuple:
    for i in tl.static_range(blocks):
        columns = start + i * block + tl.arange(0, block)
        # up to the stride, a multiple of 16 where vocabularies are none: several are loaded at once
        x = tl.load(logits + columns, mask=columns < stride, other=0.0).to(tl.float32)
        x = tl.where(columns < vocab, x, float("-inf"))
        read = read + (x * LOG2_E,)  # noqa: RUF005 - Triton knows no other way
    return read


@triton.jit
def log2_of_total(
    logits: tl.tensor, vocab: int, stride: int, block: tl.constexpr, blocks: tl.constexpr
) -> tl.tensor:
    """The logarithm of the sum of the exponentials of a row, in base 2, as the GPU makes powers."""
    top = tl.full((block,), -1e30, tl.float32)  # below any; of minus infinity itself comes nan
    total = tl.full((block,), 0.0, tl.float32)
    for start in range(0, vocab, block * blocks):
        read = _logits((), logits, start, vocab, stride, block, blocks)
        larger = top
        for i in tl.static_range(blocks):
            larger = tl.maximum(larger, read[i])
        total *= tl.exp2(top - larger)
        for i in tl.static_range(blocks):
            total += tl.exp2(read[i] - larger)
        top = larger
    top_of_all = tl.max(top, 0)
    return top_of_all + tl.log2(tl.sum(total * tl.exp2(top - top_of_all), 0))


@triton.jit
def _cross_entropy(  # noqa: PLR0917 - a launch passes them so
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    vocab: int,
    stride: int,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
    blocks: tl.constexpr,
    written: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    # before the sum, which all threads wait for: the gradient overwrites it
    wanted = tl.load(logits + target).to(tl.float32) * LOG2_E
    log_total = log2_of_total(logits, vocab, stride, block, blocks)
    tl.store(losses + row, (log_total - wanted) / LOG2_E)
    if with_gradient:
        for start in range(0, stride, written):
            columns = start + tl.arange(0, written)
            x = tl.load(logits + columns, mask=columns < stride, other=0.0).to(tl.float32)
            x = tl.where(columns < vocab, x, float("-inf"))
            gradient = tl.exp2(x * LOG2_E - log_total) - tl.where(columns == target, 1.0, 0.0)
            tl.store(logits + columns, gradient, mask=columns < stride)


def cross_entropy_(
    logits_NP: Tensor, targets_N: Tensor, *, vocab: int, with_gradient: bool
) -> Tensor:
    """The negative log-likelihood of each target (N,), in nats, in float32.

    ``logits_NP`` is contiguous; of its P columns the first ``vocab`` count. ``with_gradient``
    replaces it by the losses' gradient, softmax - onehot, 0 in the columns beyond. Rows that the
    GPU's cache holds, with those that are read beside them, are read once from its memory: on an
    H200 those of 50,000 logits of 16 bits are.
    """
    count, stride = logits_NP.shape
    losses_N = logits_NP.new_empty(count, dtype=torch.float32)
    blocks = blocks_of(stride)
    _cross_entropy[(count,)](
        logits_NP,
        targets_N,
        losses_N,
        vocab,
        stride,
        with_gradient,
        *blocks,
        num_warps=max(1, blocks[-1] // LOGITS_PER_WARP),
    )
    return losses_N


def blocks_of(stride: int) -> tuple[int, int, int]:
    """Numbers of a row that are read at once, how many times, and that are written at once."""
    row = triton.next_power_of_2(stride)
    block = min(READ_BLOCK, row)
    return block, min(READ_BLOCKS, triton.cdiv(stride, block)), min(WRITTEN_BLOCK, row)


@triton.jit
def _scaled(
    numbers: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    count: int,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(numbers + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(out + at, x * tl.load(scale), mask=at < count)


def scaled(numbers: Tensor, scale: Tensor, *, out: Tensor) -> Tensor:
    """``numbers`` times a scale of float32 on the GPU, into ``out``, which may be ``numbers``.

    Both are contiguous. torch's own product of a half-precision tensor and such a scale takes
    four times as long: it reads number by number.
    """
    count = numbers.numel()
    _scaled[(triton.cdiv(count, SCALED),)](numbers, out, scale, count, SCALED, num_warps=4)
    return out


@triton.jit
def _address(table: tl.tensor, entry: tl.tensor, border: tl.constexpr) -> tl.tensor:
    """Of float32, on a border of so many bytes: as many are read at once there."""
    return tl.multiple_of(tl.load(table + entry).to(tl.pointer_type(tl.float32)), border)


@triton.jit
def _squares(  # noqa: PLR0917 - a launch passes them so
    table: tl.tensor,
    chunks: tl.tensor,
    sums: tl.tensor,
    columns: tl.constexpr,
    chunk: tl.constexpr,
    border: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    entry = tl.load(chunks + 2 * program) * columns
    start = tl.load(chunks + 2 * program + 1)
    count = tl.load(table + entry + 4)
    gradient = _address(table, entry + 1, border)
    at = start + tl.arange(0, chunk)
    if start + chunk <= count:  # without a mask, which would be asked for each number
        g = tl.load(gradient + at)
    else:
        g = tl.load(gradient + at, mask=at < count, other=0.0)
    tl.store(sums + program, tl.sum(g * g, 0))


@triton.jit
def _prepare(  # noqa: PLR0917 - a launch passes them so
    sums: tl.tensor,
    count: int,
    scalars: tl.tensor,
    step: tl.tensor,
    rate: tl.tensor,
    undone: tl.tensor,
    max_norm: float,
    beta1: float,
    beta2: float,
    block: tl.constexpr,
) -> None:
    lanes = tl.full((block,), 0.0, tl.float32)
    for start in range(0, count, block):
        at = start + tl.arange(0, block)
        lanes += tl.load(sums + at, mask=at < count, other=0.0)
    norm = tl.sqrt(tl.sum(lanes, 0))
    share = max_norm / (norm + 1e-6)
    share = tl.where(share > 1.0, 1.0, share)  # nan stays nan
    done = tl.load(step) + (1.0 - tl.load(undone))
    tl.store(step, done)
    # in float64: near the first steps 1 - beta^step is the difference of near equals
    power1 = tl.exp(done.to(tl.float64) * tl.log(tl.cast(beta1, tl.float64)))
    power2 = tl.exp(done.to(tl.float64) * tl.log(tl.cast(beta2, tl.float64)))
    tl.store(scalars, norm)
    tl.store(scalars + 1, share)
    tl.store(scalars + 2, (tl.load(rate) / (1.0 - power1)).to(tl.float32))
    tl.store(scalars + 3, tl.sqrt(1.0 - power2).to(tl.float32))


@triton.jit
def _change(  # noqa: PLR0917 - Triton's functions take no names
    addresses: tl.tuple,
    at: tl.tensor,
    mask: tl.tensor | None,
    factors: tl.tuple,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    parameter, gradient, mean, square = addresses
    decay, share, size, root = factors
    g = tl.load(gradient + at, mask=mask) * share
    m = tl.load(mean + at, mask=mask)
    v = tl.load(square + at, mask=mask)
    p = tl.load(parameter + at, mask=mask)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    p = p * decay - size * m / (tl.sqrt(v) / root + eps)
    tl.store(parameter + at, p, mask=mask)
    tl.store(mean + at, m, mask=mask)
    tl.store(square + at, v, mask=mask)


@triton.jit
def _adamw(  # noqa: PLR0917 - a launch passes them so
    table: tl.tensor,
    chunks: tl.tensor,
    decays: tl.tensor,
    scalars: tl.tensor,
    rate: tl.tensor,
    undone: tl.tensor,
    beta1: float,
    beta2: float,
    eps: float,
    columns: tl.constexpr,
    chunk: tl.constexpr,
    border: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    tensor = tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1)
    entry = tensor * columns
    addresses = (
        _address(table, entry, border),
        _address(table, entry + 1, border),
        _address(table, entry + 2, border),
        _address(table, entry + 3, border),
    )
    count = tl.load(table + entry + 4)
    decay = 1.0 - tl.load(rate) * tl.load(decays + tensor)
    factors = (decay, tl.load(scalars + 1), tl.load(scalars + 2), tl.load(scalars + 3))
    at = start + tl.arange(0, chunk)
    if tl.load(undone) < 1.0:
        if start + chunk <= count:
            _change(addresses, at, None, factors, beta1, beta2, eps)
        else:
            _change(addresses, at, at < count, factors, beta1, beta2, eps)


def clipped_adamw_(
    *,
    table: Tensor,
    chunks: Tensor,
    decays: Tensor,
    sums: Tensor,
    scalars: Tensor,
    step: Tensor,
    rate: Tensor,
    undone: Tensor,
    max_norm: float,
    betas: tuple[float, float],
    eps: float,
    border: int,
) -> None:
    """One step of AdamW on clipped gradients, for all parameters in three launches.

    ``table`` (tensors, COLUMNS) and ``chunks`` (programs, 2: tensor, first number) are int64,
    ``decays`` (tensors,) and ``sums`` (programs,) float32. ``scalars`` (4,) gets the norm of all
    gradients first. ``undone``: 1 where nothing is to change. All addresses are multiples of
    ``border`` bytes. Loshchilov and Hutter 2019.
    """
    count = len(chunks)
    _squares[(count,)](table, chunks, sums, COLUMNS, CHUNK, border, num_warps=CHUNK_WARPS)
    _prepare[(1,)](sums, count, scalars, step, rate, undone, max_norm, *betas, SUMS, num_warps=8)
    _adamw[(count,)](
        table,
        chunks,
        decays,
        scalars,
        rate,
        undone,
        *betas,
        eps,
        COLUMNS,
        CHUNK,
        border,
        num_warps=CHUNK_WARPS,
    )
