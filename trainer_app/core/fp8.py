"""Products in eight bits, on an H100 and later: forward, and of the inputs' gradients.

Each row of activations and gradients, and each of a weight, has a scale of its own, by its largest
value; the weights' gradients are multiplied in bf16, for they are summed over all tokens. M rows,
K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0  # of FP8
SMALLEST_ROW: Final = 1e-12  # a row of zeros has a scale, too
MULTIPLE: Final = 16  # of K and N: what the GPU's instructions take

_Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def use_fp8(model: nn.Module) -> None:
    """Let the linear layers of a model train in fp8; elsewhere they compute as before."""
    for module in model.modules():
        if type(module) is nn.Linear and not any(n % MULTIPLE for n in module.weight.shape):
            module.__class__ = Float8Linear


class Float8Linear(nn.Linear):
    """A linear layer whose products are in fp8 while it trains under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not torch.is_autocast_enabled("cuda"):
            return F.linear(x, self.weight, self.bias)
        dtype = torch.get_autocast_dtype("cuda")  # pragma: needs cuda
        x_MK = x.to(dtype).flatten(0, -2)  # pragma: needs cuda
        apply: _Apply = _Product.apply  # pragma: needs cuda
        y_MN = apply(x_MK, self.weight, self._parameters["bias"])  # pragma: needs cuda
        return y_MN.view(*x.shape[:-1], -1)  # pragma: needs cuda


class _Context(Protocol):
    """What autograd passes to a Function."""

    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Product(torch.autograd.Function):  # pragma: needs cuda
    @staticmethod
    def forward(ctx: _Context, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return fp8_product(x_MK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_MN: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        grad_x_MK = fp8_product(grad_MN, weight_NK.t())
        grad_weight_NK = (grad_MN.t() @ x_MK).to(weight_NK.dtype)
        grad_bias_N = grad_MN.sum(0, dtype=weight_NK.dtype) if ctx.needs_input_grad[2] else None
        return grad_x_MK, grad_weight_NK, grad_bias_N


def fp8_product(  # pragma: needs cuda
    x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """x weight^T + bias, (M, N), in the precision of x."""
    x8_MK, x_scale_M1 = in_fp8(x_MK)
    weight8_NK, weight_scale_N1 = in_fp8(weight_NK)
    return torch._scaled_mm(  # noqa: SLF001 - torch's compiler knows the public one too short a time
        x8_MK,
        weight8_NK.t(),
        bias=None if bias_N is None else bias_N.to(x_MK.dtype),
        scale_a=x_scale_M1,
        scale_b=weight_scale_N1.t(),
        out_dtype=x_MK.dtype,
        use_fast_accum=True,
    )


def compiled_fp8_product(x_MK: Tensor, weight_NK: Tensor) -> Tensor:  # pragma: needs cuda
    """The same where nothing around it is compiled: the operands are made in a pass each."""
    compiled: Callable[[Tensor, Tensor], Tensor] = _compiler()
    return compiled(x_MK, weight_NK)


@cache
def _compiler() -> Callable[[Tensor, Tensor], Tensor]:  # pragma: needs cuda
    return torch.compile(fp8_product, dynamic=False)


def in_fp8(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in fp8, and what each is to be multiplied by (M, 1) to be itself again."""
    top_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().clamp(min=SMALLEST_ROW)
    scaled_MK = x_MK.float() * (LARGEST / top_M1)
    return scaled_MK.to(FP8).contiguous(), top_M1 / LARGEST
