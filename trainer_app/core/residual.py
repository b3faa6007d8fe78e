"""The residual stream's gradient, made in one pass for all that read it.

Behind each layer its output is added to the stream, which is then normalised. Going back, one
kernel gives the gradient of that sum in the precisions of both, with the sums over all tokens that
are the gradients of the norm and, behind a layer norm, of the layer's bias. torch and its compiler
read it again for each of those, and sum in launches of their own. M rows, D width, P programs,
S sums: 3 of a layer norm, 1 of an RMS norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backends.models.transformer import (
    LayerNorm,
    RMSNorm,
    StreamNorm,
    Transformer,
    as_it_comes,
)
from trainer_app.core.fp8 import Float8Linear
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

FEWEST: Final = 1 << 18  # numbers in the stream
WIDEST: Final = 8192  # row that a program keeps in its registers
PROGRAMS: Final = 4  # on each of the GPU's multiprocessors

_Apply = Callable[
    [Tensor, Tensor, Tensor | None, Tensor, Tensor | None, float], tuple[Tensor, Tensor]
]
_LastApply = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, float], Tensor]


@cache
def why_not() -> str | None:  # pragma: needs cuda
    """Why the kernel cannot be used on this GPU; None: it can. One launch tells."""
    try:
        x_MD = torch.zeros(1, 128, dtype=torch.bfloat16, device="cuda")
        ones_M = torch.ones(1, device="cuda")
        torch.ops.model_trainer.norm_gradient(x_MD.half(), x_MD, x_MD, x_MD[0], ones_M, ones_M)
    except (torch.OutOfMemoryError, StopRequested):
        raise  # by what else is there, and an interruption: not the kernel's doing
    except Exception as error:
        return first_line(error)
    return None


def use_norm_kernel(model: nn.Module) -> None:
    """Let the norms behind the layers of a model train by the kernel.

    Those are RMS norms, and layer norms behind products that have biases; elsewhere they compute
    as before.
    """
    if not isinstance(model, Transformer) or model.shape.width > WIDEST:
        return
    for block, after in zip(model.blocks(), model.norms_after(), strict=True):
        for norm, product in ((block.ln_2, block.attn_proj), (after, block.mlp_proj)):
            last = norm is model.ln_f
            if type(norm) is RMSNorm:
                norm.__class__ = LastKernelRMSNorm if last else KernelRMSNorm
            elif type(norm) is LayerNorm and "bias" in dict(product.named_parameters()):
                norm.__class__ = LastKernelNorm if last else KernelNorm
                in_fp8 = isinstance(product, Float8Linear)
                product.__class__ = Float8StreamLinear if in_fp8 else StreamLinear


def _is_used(module: nn.Module, numbers: int) -> bool:
    """Whether it is, while a module trains, for a stream of so many numbers.

    A layer norm and the product before it say the same, or a bias would have two gradients or none.
    """
    return module.training and numbers >= FEWEST and torch.is_autocast_enabled("cuda")


def _trained_bias(product: nn.Linear, rows: int) -> Tensor:
    """The product's bias, without a gradient where the norm behind makes that."""
    used = _is_used(product, rows * product.out_features)
    return product.bias.detach() if used else product.bias


class StreamLinear(nn.Linear):
    """A product onto the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, _trained_bias(self, x.numel() // x.shape[-1]))


class Float8StreamLinear(Float8Linear):
    """The same in fp8."""

    def trained_bias(self, rows: int) -> Tensor:
        return _trained_bias(self, rows)


class _WithKernel(StreamNorm):
    """A norm behind a layer, which has a kernel for its gradient under autocast."""

    weight: nn.Parameter
    eps: float

    def added(self, x: Tensor, y: Tensor, bias_D: Tensor | None) -> tuple[Tensor, Tensor]:
        if not _is_used(self, x.numel()):
            return super().added(x, y, bias_D)
        apply: _Apply = _AddedNorm.apply
        with as_it_comes(x):
            return apply(x, y, bias_D, self.weight, self._parameters.get("bias"), self.eps)


class _LastWithKernel(StreamNorm):
    """The one behind the last layer: what was the stream is read by nothing else.

    Its Function is one of its own, for torch's compiler would pass a gradient of zeros to be read.
    """

    weight: nn.Parameter
    eps: float

    def added(self, x: Tensor, y: Tensor, bias_D: Tensor | None) -> tuple[Tensor, Tensor]:
        if not _is_used(self, x.numel()):
            return super().added(x, y, bias_D)
        apply: _LastApply = _LastAddedNorm.apply
        with as_it_comes(x):
            return x, apply(x, y, bias_D, self.weight, self._parameters.get("bias"), self.eps)


class KernelNorm(_WithKernel, LayerNorm):
    """A layer norm, which makes the gradient of the bias before it, too."""


class LastKernelNorm(_LastWithKernel, LayerNorm):
    """The last layer norm."""


class KernelRMSNorm(_WithKernel, RMSNorm):
    """An RMS norm: a bias before it, which few models have, gets its gradient from the product."""


class LastKernelRMSNorm(_LastWithKernel, RMSNorm):
    """The last RMS norm."""


class _Context(Protocol):
    """What autograd passes to a Function."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


_Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, None]


class _AddedNorm(torch.autograd.Function):
    """x + y, in the precision of x, and that normalised, in the precision of y.

    By a layer norm, of a y that the bias was added to; without a bias of the norm by an RMS norm.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: _Context,
        x: Tensor,
        y: Tensor,
        bias_D: Tensor | None,  # noqa: ARG004 - for its gradient
        weight_D: Tensor,
        norm_bias_D: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        return _forward(ctx, x, y, weight_D, norm_bias_D, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_x: Tensor, grad: Tensor) -> _Gradients:
        return _backward(ctx, grad, grad_x)


class _LastAddedNorm(torch.autograd.Function):
    """The second of them alone."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: _Context,
        x: Tensor,
        y: Tensor,
        bias_D: Tensor | None,  # noqa: ARG004 - for its gradient
        weight_D: Tensor,
        norm_bias_D: Tensor | None,
        eps: float,
    ) -> Tensor:
        return _forward(ctx, x, y, weight_D, norm_bias_D, eps)[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> _Gradients:
        return _backward(ctx, grad, None)


def _forward(  # noqa: PLR0917 - as above
    ctx: _Context, x: Tensor, y: Tensor, weight_D: Tensor, norm_bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x = x + y.to(x.dtype)
    weight_D = weight_D.to(x.dtype)
    shape = weight_D.shape
    if norm_bias_D is None:
        # what F.rms_norm is; its other result is no public function's
        normed, rstd = torch.ops.aten._fused_rms_norm(x, shape, weight_D, eps)  # noqa: SLF001
        ctx.save_for_backward(x, weight_D, rstd)
    else:
        normed, mean, rstd = torch.native_layer_norm(
            x, shape, weight_D, norm_bias_D.to(x.dtype), eps
        )
        ctx.save_for_backward(x, weight_D, rstd, mean)
    # a view: of what one operator makes beside others, torch 2.11's compiler drops the gradient
    return x, normed.to(y.dtype).view_as(x)


def _backward(ctx: _Context, grad: Tensor, grad_x: Tensor | None) -> _Gradients:
    x, weight_D, rstd, *means = ctx.saved_tensors
    grad_x, grad_y, sums_PSD = torch.ops.model_trainer.norm_gradient(
        grad, x, grad_x, weight_D, means[0] if means else None, rstd
    )
    if grad.dtype == x.dtype:
        grad_y = grad_x
    weight_grad_D, *bias_grads = sums_PSD.sum(0).unbind(0)
    norm_bias_grad_D, bias_grad_D = bias_grads or (None, None)
    return grad_x, grad_y, bias_grad_D, weight_grad_D, norm_bias_grad_D, None


@torch.library.custom_op(
    "model_trainer::norm_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? grad_x, Tensor weight_D, Tensor? mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor)",
)
def _norm_gradient(  # noqa: PLR0917 - the schema's
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,
    weight_D: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from trainer_app.core.residual_kernels import norm_gradient  # noqa: PLC0415 - needs Triton

    if grad_x is not None:
        grad_x = grad_x.contiguous()
    return norm_gradient(grad.contiguous(), x, grad_x, weight_D, mean, rstd)


@_norm_gradient.register_fake
def _(  # noqa: PLR0917 - the schema's
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,  # noqa: ARG001 - as above
    weight_D: Tensor,  # noqa: ARG001
    mean: Tensor | None,
    rstd: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.empty_like(grad, memory_format=torch.contiguous_format)
    in_half = x.new_empty(0, dtype=grad.dtype) if grad.dtype == x.dtype else contiguous
    return torch.empty_like(x), in_half, empty_sums(x, mean)


def empty_sums(x: Tensor, mean: Tensor | None) -> Tensor:
    """(P, S, D): for the sums of the gradient of x, behind an RMS norm where there is no mean."""
    return x.new_empty(programs(x), 1 if mean is None else 3, x.shape[-1], dtype=torch.float32)


def programs(x: Tensor) -> int:  # pragma: needs cuda
    """How many share the rows of the gradient of x: as many as run at once."""
    rows = x.numel() // x.shape[-1]
    properties = torch.cuda.get_device_properties(x.device)
    return min(rows, PROGRAMS * properties.multi_processor_count)
