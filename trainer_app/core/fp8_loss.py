"""The head and the next-token loss in eight bits, on an H100 and later.

The logits' gradient is written in eight bits alone, half of what is read of the logits: each row
with a scale, which is multiplied into the hidden states where the head's gradient sums over all
rows. N predicted tokens, D width, V vocabulary, P the vocabulary and what it is padded with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch.autograd.function import once_differentiable

from trainer_app.core.fp8 import (
    MULTIPLE,
    WIDEST,
    over_tokens,
    scaled_product,
    summed,
    why_unfused,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def takes(hidden_ND: Tensor) -> bool:
    """Whether hidden states of this width have kernels on this GPU."""
    width = hidden_ND.shape[1]
    return not width % MULTIPLE and width <= WIDEST and why_unfused() is None


def loss_in_fp8(  # pragma: needs cuda
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, padded: int
) -> Tensor:
    """Mean cross-entropy of softmax(hidden weight^T), in nats per token, in float32.

    ``padded``: P, a multiple of 16.
    """
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor] = _Float8CrossEntropy.apply
    return apply(hidden_ND, weight_VD, targets_N, padded)


class _Context(Protocol):
    """What autograd passes to a Function."""

    needs_input_grad: tuple[bool, bool, bool, bool]
    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
    dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None: ...


_Gradients = tuple["Tensor | None", "Tensor | None", None, None]


class _Float8CrossEntropy(torch.autograd.Function):  # pragma: needs cuda
    @staticmethod
    def forward(
        ctx: _Context, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, padded: int
    ) -> Tensor:
        from trainer_app.core.fp8_kernels import (  # noqa: PLC0415 - needs Triton
            cross_entropy_in_fp8,
            rows_in_fp8,
        )

        vocab = len(weight_VD)
        hidden_ND = hidden_ND.contiguous()
        hidden8_ND, hidden_scale_N1 = rows_in_fp8(hidden_ND)
        weight8_PD, weight_scale_P1 = rows_in_fp8(weight_VD, rows=padded)
        ctx.dtype = torch.get_autocast_dtype("cuda")
        logits_NP = scaled_product(
            hidden8_ND, hidden_scale_N1, weight8_PD, weight_scale_P1, dtype=ctx.dtype
        )
        losses_N, grad8_NP, scale_N1 = cross_entropy_in_fp8(logits_NP, targets_N, vocab=vocab)
        ctx.save_for_backward(
            hidden_ND, hidden_scale_N1, weight_VD, weight_scale_P1, grad8_NP, scale_N1
        )
        return losses_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_loss: Tensor) -> _Gradients:
        from trainer_app.core.fp8_kernels import folded  # noqa: PLC0415 - needs Triton

        hidden_ND, hidden_scale_N1, weight_VD, weight_scale_P1, grad8_NP, scale_N1 = (
            ctx.saved_tensors
        )
        vocab, width = weight_VD.shape
        share = grad_loss / len(hidden_ND)
        to_hidden, to_weight, *_ = ctx.needs_input_grad
        hidden_grad = weight_grad = None
        if to_hidden:
            top = weight_scale_P1.amax()
            ones_V1 = torch.ones_like(weight_scale_P1[:vocab])
            weight8_DP = folded(weight_VD, ones_V1, top, rows=grad8_NP.shape[1])
            hidden_grad = scaled_product(
                grad8_NP,
                scale_N1 * share,
                weight8_DP,
                top.expand(width, 1).contiguous(),
                dtype=ctx.dtype,
                fast=False,  # the target's number is a hundred thousand times the others
            )
        if to_weight:
            grad8_PN, hidden8_DN, scale = over_tokens(
                grad8_NP, scale_N1, hidden_ND, hidden_scale_N1
            )
            weight_grad = summed(grad8_PN, hidden8_DN, scale * share)[:vocab]
        return hidden_grad, weight_grad, None, None
