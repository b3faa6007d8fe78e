"""Next-token cross-entropy in float32.

On a CPU the logits of a large batch are never all held; on a GPU they are held once, in the
precision of the products, and their gradient takes their place (in fp8 see core/fp8_loss.py).
N = B x T predicted tokens, D width, V vocabulary, P the vocabulary and what it is padded with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainer_app.core import fp8_loss
from trainer_app.core.fp8 import is_used
from trainer_app.core.padding import VOCABULARY, padded
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

if TYPE_CHECKING:
    from backends.contracts import CausalModel

CHUNK_LOGITS: Final = 1 << 21  # held at once: 8 MiB of float32 stay near the core's cache
FEWEST_ROWS: Final = 512  # of a chunk: each adds to the whole (V, D) gradient once

_Apply = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


class LanguageModelLoss(nn.Module):
    """A model and its loss in one forward pass: what Accelerate prepares."""

    def __init__(self, model: CausalModel, *, fp8: bool = False) -> None:
        """In the mode of ``model``. ``fp8``: of the products on an H100 or later; those of the
        model are its own concern.
        """
        super().__init__()
        self.model = model
        self.fp8 = fp8
        self.train(model.training)

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets, in nats per token."""
        hidden_ND = self.model.hidden(inputs_BT).flatten(0, 1)
        weight_VD, targets_N = self.model.head_weight(), targets_BT.flatten()
        if self.fp8 and is_used(self) and fp8_loss.why_not(hidden_ND.shape[1]) is None:
            return fp8_loss.loss_in_fp8(hidden_ND, weight_VD, targets_N)
        return next_token_loss(hidden_ND, weight_VD, targets_N)


def next_token_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(hidden weight^T), in nats per token, in float32."""
    large = len(targets_N) * len(weight_VD) > CHUNK_LOGITS
    on_gpu = hidden_ND.device.type == "cuda"
    if large and not on_gpu:
        return chunked_loss(hidden_ND, weight_VD, targets_N)
    if on_gpu and why_unfused(logits_dtype()) is None:  # pragma: needs cuda
        return fused_loss(hidden_ND, weight_VD, targets_N)
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), targets_N)


def chunked_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same loss, the logits made and used chunk by chunk."""
    apply: _Apply = _ChunkedCrossEntropy.apply
    return apply(hidden_ND, weight_VD, targets_N, torch.is_grad_enabled())


def logits_dtype() -> torch.dtype:  # pragma: needs cuda
    """That of the logits on a GPU: autocast's, where it is on."""
    mixed = torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if mixed else torch.float32


@cache
def why_unfused(dtype: torch.dtype) -> str | None:
    """Why kernels of our own cannot be used on this GPU, for logits so; None: they can.

    Triton comes with torch's builds for CUDA, but compiles with the machine's C compiler and
    Python's headers: one launch shows whether it has them.
    """
    if find_spec("triton") is None:
        return "torch came without Triton"
    from trainer_app.core.kernels import cross_entropy_  # noqa: PLC0415  # pragma: needs cuda

    try:  # pragma: needs cuda
        logits_NP = torch.zeros(1, VOCABULARY, dtype=dtype, device="cuda")
        targets_N = torch.zeros(1, dtype=torch.int64, device="cuda")
        cross_entropy_(logits_NP, targets_N, vocab=VOCABULARY, with_gradient=True)
    except (torch.OutOfMemoryError, StopRequested):  # pragma: needs cuda
        raise  # by what else is there, and an interruption: tried again
    except Exception as error:  # whatever a compiler may raise  # pragma: needs cuda
        return first_line(error)
    return None  # pragma: needs cuda


def fused_loss(  # pragma: needs cuda
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor
) -> Tensor:
    """The same loss on a GPU, in as few passes over the logits as there can be."""
    apply: _Apply = _FusedCrossEntropy.apply
    return apply(hidden_ND, weight_VD, targets_N, torch.is_grad_enabled())


_Gradients = tuple[Tensor | None, Tensor | None, None, None]


class _Context(Protocol):
    """What autograd passes to a Function.

    ``needs_input_grad`` says what requires gradients, also where none are being recorded: whether
    they are is an argument of each Function here.
    """

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]
    vocab: int

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass.

    d loss / d logits = (softmax - onehot) / N needs nothing that comes after the loss: it is made
    in place while the logits are there, and only what is (N, D) or (V, D) outlives a chunk.
    """

    @staticmethod
    def forward(
        ctx: _Context, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, recorded: bool
    ) -> Tensor:
        count, vocab = len(targets_N), len(weight_VD)
        to_hidden, to_weight = (recorded and needed for needed in ctx.needs_input_grad[:2])
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
    def backward(ctx: _Context, grad_loss: Tensor) -> _Gradients:
        hidden_grad, weight_grad = ctx.saved_tensors
        # in place, for they are nobody else's: of a second backward autograd says that it is amiss
        return (
            None if hidden_grad is None else hidden_grad.mul_(grad_loss),
            None if weight_grad is None else weight_grad.mul_(grad_loss),
            None,
            None,
        )


class _FusedCrossEntropy(torch.autograd.Function):  # pragma: needs cuda
    """The head's product and the loss; the logits' gradient is written over the logits.

    The vocabulary is padded to a multiple of 128, where the GPU multiplies fastest: with the cast
    that mixed precision makes anyway, so that no parameter changes its size. The gradient is kept
    as softmax - onehot, within [-1, 1]; the mean and the loss scale of fp16 are applied to the
    hidden states, which are smaller.
    """

    @staticmethod
    def forward(
        ctx: _Context, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, recorded: bool
    ) -> Tensor:
        from trainer_app.core.kernels import cross_entropy_  # noqa: PLC0415 - needs Triton

        mixed = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda") if mixed else hidden_ND.dtype
        vocab = len(weight_VD)
        hidden_ND = hidden_ND.to(dtype)
        weight_PD = weight_VD.new_empty(padded(vocab, VOCABULARY), weight_VD.shape[1], dtype=dtype)
        weight_PD[:vocab].copy_(weight_VD)  # cast in the pass that pads
        weight_PD[vocab:].zero_()
        logits_NP = F.linear(hidden_ND, weight_PD)
        losses_N = cross_entropy_(logits_NP, targets_N, vocab=vocab, with_gradient=recorded)
        if recorded:
            ctx.save_for_backward(hidden_ND, weight_PD, logits_NP)
            ctx.vocab = vocab
        return losses_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_loss: Tensor) -> _Gradients:
        hidden_ND, weight_PD, grad_NP = ctx.saved_tensors
        assert hidden_ND is not None
        assert weight_PD is not None
        assert grad_NP is not None
        from trainer_app.core.kernels import scaled  # noqa: PLC0415 - needs Triton

        scale = grad_loss / len(hidden_ND)
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        hidden_grad = weight_grad = None
        if to_hidden:
            hidden_grad = grad_NP @ weight_PD
            scaled(hidden_grad, scale, out=hidden_grad)
        if to_weight:
            scaled_ND = scaled(hidden_ND, scale, out=torch.empty_like(hidden_ND))
            # summed up in float32, and left so
            weight_grad = torch.mm(grad_NP.t(), scaled_ND, out_dtype=torch.float32)[: ctx.vocab]
        return hidden_grad, weight_grad, None, None
