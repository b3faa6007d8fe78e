"""Next-token cross-entropy in float32; on a CPU the logits of a large batch are never all held.

N = B x T predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from backends.contracts import CausalModel

CHUNK_LOGITS: Final = 1 << 21  # held at once: 8 MiB of float32 stay near the core's cache
FEWEST_ROWS: Final = 512  # of a chunk: each adds to the whole (V, D) gradient once


class LanguageModelLoss(nn.Module):
    """A model and its loss in one forward pass: what Accelerate prepares."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets, in nats per token."""
        hidden_ND = self.model.hidden(inputs_BT).flatten(0, 1)
        return next_token_loss(hidden_ND, self.model.head_weight(), targets_BT.flatten())


def next_token_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(hidden weight^T), in nats per token, in float32."""
    large = len(targets_N) * len(weight_VD) > CHUNK_LOGITS
    if large and hidden_ND.device.type == "cpu":
        return chunked_loss(hidden_ND, weight_VD, targets_N)
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), targets_N)


def chunked_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same loss, the logits made and used chunk by chunk."""
    apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _ChunkedCrossEntropy.apply
    return apply(hidden_ND, weight_VD, targets_N)


class _Context(Protocol):
    """What autograd passes to a Function."""

    needs_input_grad: tuple[bool, bool, bool]
    saved_tensors: tuple[Tensor | None, Tensor | None]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass.

    d loss / d logits = (softmax - onehot) / N needs nothing that comes after the loss: it is made
    in place while the logits are there, and only what is (N, D) or (V, D) outlives a chunk.
    """

    @staticmethod
    def forward(ctx: _Context, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        count, vocab = len(targets_N), len(weight_VD)
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_ND) if to_hidden else None
        weight_grad = torch.zeros_like(weight_VD) if to_weight else None
        total = hidden_ND.new_zeros(())
        rows = max(FEWEST_ROWS, CHUNK_LOGITS // vocab)
        for start in range(0, count, rows):
            hidden_RD = hidden_ND[start : start + rows]
            targets_R1 = targets_N[start : start + rows, None]
            logits_RV = hidden_RD @ weight_VD.t()
            wanted_R1 = logits_RV.gather(1, targets_R1)
            top_R1 = logits_RV.amax(1, keepdim=True)
            exp_RV = logits_RV.sub_(top_R1).exp_()
            sum_R1 = exp_RV.sum(1, keepdim=True)
            total += (sum_R1.log() + top_R1 - wanted_R1).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            grad_RV = exp_RV.mul_(1 / (sum_R1 * count))
            grad_RV.scatter_add_(1, targets_R1, torch.full_like(sum_R1, -1 / count))
            if hidden_grad is not None:
                torch.mm(grad_RV, weight_VD, out=hidden_grad[start : start + rows])
            if weight_grad is not None:
                weight_grad.addmm_(grad_RV.t(), hidden_RD)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * grad_loss,
            None if weight_grad is None else weight_grad * grad_loss,
            None,
        )
