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

LARGEST_BLOCK: Final = 8192  # logits that a program holds at once, in registers
LOGITS_PER_WARP: Final = 512


@triton.jit
def _cross_entropy(  # noqa: PLR0917 - a launch passes them so
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    vocab: int,
    stride: int,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    # before the reductions below, which all threads wait for: the gradient overwrites it
    wanted = tl.load(logits + target).to(tl.float32)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, block):
        columns = start + tl.arange(0, block)
        x = tl.load(logits + columns, mask=columns < vocab, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(x - larger), 0)
        top = larger
    log_total = top + tl.log(total)
    tl.store(losses + row, log_total - wanted)
    if with_gradient:
        for start in range(0, stride, block):
            columns = start + tl.arange(0, block)
            x = tl.load(logits + columns, mask=columns < vocab, other=float("-inf"))
            gradient = tl.exp(x.to(tl.float32) - log_total) - tl.where(columns == target, 1.0, 0.0)
            tl.store(logits + columns, gradient, mask=columns < stride)


def cross_entropy_(
    logits_NP: Tensor, targets_N: Tensor, *, vocab: int, with_gradient: bool
) -> Tensor:
    """The negative log-likelihood of each target (N,), in nats, in float32.

    ``logits_NP`` is contiguous; of its P columns the first ``vocab`` count. ``with_gradient``
    replaces it by the losses' gradient, softmax - onehot, 0 in the columns beyond: read once from
    the GPU's memory and written once (the second reading of a row finds it in the cache), where a
    softmax and its gradient as two operations read twice.
    """
    count, stride = logits_NP.shape
    losses_N = logits_NP.new_empty(count, dtype=torch.float32)
    block = min(LARGEST_BLOCK, triton.next_power_of_2(stride))
    warps = max(1, min(16, block // LOGITS_PER_WARP))
    launch = _cross_entropy[(count,)]
    launch(logits_NP, targets_N, losses_N, vocab, stride, with_gradient, block, num_warps=warps)
    return losses_N
