"""GELU whose gradient is made together with that of the bias before it, in one pass.

torch and its compiler read the gradient a second time for the sums that are the bias'. M rows, D
width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backends.models.transformer import Block
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

FEWEST: Final = 1 << 26  # numbers: of half as many the compiler's own kernels are as fast

_Apply = Callable[[Tensor, Tensor], Tensor]


@cache
def why_not() -> str | None:  # pragma: needs cuda
    """Why the kernel cannot be used on this GPU; None: it can. One launch tells."""
    try:
        u_MF = torch.zeros(1, 128, dtype=torch.bfloat16, device="cuda")
        torch.ops.model_trainer.gelu_gradient(u_MF, u_MF)
    except (torch.OutOfMemoryError, StopRequested):
        raise  # by what else is there, and an interruption: not the kernel's doing
    except Exception as error:
        return first_line(error)
    return None


def use_gelu_kernel(model: nn.Module) -> None:
    """Let the blocks of a model that have GELU train by the kernel, on batches that are worth it.

    Elsewhere they compute as before.
    """
    for module in model.modules():
        if (
            type(module) is Block
            and not module.gated
            and "bias" in dict(module.c_fc.named_parameters())
        ):
            module.__class__ = GeluBlock


class GeluBlock(Block):
    """A block whose GELU has a kernel for its gradient under autocast."""

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        rows = x_BTD.numel() // x_BTD.shape[-1]
        worth_it = rows * self.c_fc.out_features >= FEWEST
        if not worth_it or not self.training or not torch.is_autocast_enabled("cuda"):
            return super().feed_forward(x_BTD)
        x_MD = x_BTD.flatten(0, -2)  # pragma: needs cuda
        # the bias' gradient comes from behind the GELU
        u_MF = F.linear(x_MD, self.c_fc.weight, self.c_fc.bias.detach())  # pragma: needs cuda
        apply: _Apply = _BiasedGelu.apply  # pragma: needs cuda
        y_MD: Tensor = self.mlp_proj(apply(u_MF, self.c_fc.bias))  # pragma: needs cuda
        return y_MD.view(x_BTD.shape)  # pragma: needs cuda


class _Context(Protocol):
    """What autograd passes to a Function."""

    saved_tensors: tuple[Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _BiasedGelu(torch.autograd.Function):  # pragma: needs cuda
    """gelu(u), of a u that the bias was added to."""

    @staticmethod
    def forward(ctx: _Context, u_MF: Tensor, bias_F: Tensor) -> Tensor:  # noqa: ARG004 - for its gradient
        ctx.save_for_backward(u_MF)
        return F.gelu(u_MF, approximate="tanh")

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_MF: Tensor) -> tuple[Tensor, Tensor]:
        (u_MF,) = ctx.saved_tensors
        grad_u_MF, sums_PF = torch.ops.model_trainer.gelu_gradient(grad_MF, u_MF)
        return grad_u_MF, sums_PF.sum(0)


@torch.library.custom_op(
    "model_trainer::gelu_gradient",
    mutates_args=(),
    schema="(Tensor grad_MF, Tensor u_MF) -> (Tensor, Tensor)",
)
def _gelu_gradient(grad_MF: Tensor, u_MF: Tensor) -> tuple[Tensor, Tensor]:  # pragma: needs cuda
    from trainer_app.core.gelu_kernels import gelu_gradient  # noqa: PLC0415 - needs Triton

    return gelu_gradient(grad_MF.contiguous(), u_MF)


@_gelu_gradient.register_fake
def _(grad_MF: Tensor, u_MF: Tensor) -> tuple[Tensor, Tensor]:  # pragma: needs cuda
    from trainer_app.core.gelu_kernels import sums_of  # noqa: PLC0415 - needs Triton

    sums_PF = u_MF.new_empty(sums_of(len(u_MF)), u_MF.shape[1], dtype=torch.float32)
    return torch.empty_like(grad_MF), sums_PF
