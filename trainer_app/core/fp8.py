"""Products in eight bits, on an H100 and later.

Each row of activations and gradients, and each of a weight, has a scale of its own, by its largest
value. A weight's gradient is a sum over all rows: of the feed-forward layers, where that pays, the
scales of one operand's rows are multiplied into the other, which is then rounded with one scale;
of the others it is multiplied in bf16. M rows, K inputs, N outputs.
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
from trainer_app.core.padding import EIGHT_BITS, padded
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0  # of FP8
SMALLEST_ROW: Final = 1e-12  # a row of zeros has a scale, too

WIDEST: Final = 8192  # row that a program of the GELU's kernels keeps in its registers
PROGRAMS: Final = 4  # of the GELU's gradient, on each of the GPU's multiprocessors

_Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_FeedForwardApply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@cache
def why_unfused() -> str | None:  # pragma: needs cuda
    """Why fp8 has no kernels of its own on this GPU; None: it has. One launch each tells."""
    try:
        from trainer_app.core.fp8_kernels import (  # noqa: PLC0415 - needs Triton
            cross_entropy_in_fp8,
            rows_in_fp8,
        )

        u_MF = torch.zeros(1, EIGHT_BITS, dtype=torch.bfloat16, device="cuda")
        u8_MF, scale_M1 = torch.ops.model_trainer.gelu_in_fp8(u_MF)
        torch.ops.model_trainer.gelu_gradient_in_fp8(u_MF, u_MF)
        over_tokens(u8_MF, scale_M1, u_MF, scale_M1)
        rows_in_fp8(u_MF)
        cross_entropy_in_fp8(u_MF, torch.zeros(1, dtype=torch.int64, device="cuda"), vocab=1)
    except (torch.OutOfMemoryError, StopRequested):
        raise  # by what else is there, and an interruption: not the kernels' doing
    except Exception as error:
        return first_line(error)
    return None


def use_fp8(model: nn.Module, *, fused: bool) -> None:
    """Let the linear layers of a model train in fp8; elsewhere they compute as before.

    ``fused``: GELU has kernels of its own.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not any(n % EIGHT_BITS for n in module.weight.shape):
            module.__class__ = Float8Linear
    for module in model.modules() if fused else ():
        if type(module) is Block and _is_fused(module):
            module.__class__ = Float8Block


def _is_fused(block: Block) -> bool:
    up, down = block.c_fc, block.mlp_proj
    in_fp8 = isinstance(up, Float8Linear) and isinstance(down, Float8Linear)
    has_biases = all("bias" in dict(part.named_parameters()) for part in (up, down))
    return in_fp8 and has_biases and not block.gated and up.out_features <= WIDEST


def is_used(module: nn.Module) -> bool:
    """Whether a module computes in fp8 now: while it trains, under autocast."""
    return module.training and torch.is_autocast_enabled("cuda")


class Float8Linear(nn.Linear):
    """A linear layer whose products are in fp8 while it trains under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_used(self):
            return F.linear(x, self.weight, self.bias)
        dtype = torch.get_autocast_dtype("cuda")  # pragma: needs cuda
        x_MK = x.to(dtype).flatten(0, -2)  # pragma: needs cuda
        apply: _Apply = _Product.apply  # pragma: needs cuda
        y_MN = apply(x_MK, self.weight, self.trained_bias(len(x_MK)))  # pragma: needs cuda
        return y_MN.view(*x.shape[:-1], -1)  # pragma: needs cuda

    def trained_bias(self, rows: int) -> Tensor | None:  # noqa: ARG002 - for others of its kind
        """The bias to add to so many rows; detached where its gradient is made elsewhere."""
        return self._parameters["bias"]


class Float8Block(Block):
    """A block with GELU, which computes it together with the operands of the product after it."""

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        if not is_used(self):
            return super().feed_forward(x_BTD)
        dtype = torch.get_autocast_dtype("cuda")  # pragma: needs cuda
        x_MD = x_BTD.to(dtype).flatten(0, -2)  # pragma: needs cuda
        apply: _FeedForwardApply = _FeedForward.apply  # pragma: needs cuda
        up, down = self.c_fc, self.mlp_proj  # pragma: needs cuda
        assert isinstance(down, Float8Linear)  # pragma: needs cuda
        down_bias = down.trained_bias(len(x_MD))  # pragma: needs cuda
        assert down_bias is not None  # pragma: needs cuda
        y_MD = apply(x_MD, up.weight, up.bias, down.weight, down_bias)  # pragma: needs cuda
        return y_MD.view(x_BTD.shape)  # pragma: needs cuda


class _Context(Protocol):
    """What autograd passes to a Function."""

    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Product(torch.autograd.Function):  # pragma: needs cuda
    @staticmethod
    def forward(ctx: _Context, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _product(x_MK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_MN: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        grad_x_MK = _product(grad_MN, weight_NK.t())
        grad_weight_NK = (grad_MN.t() @ x_MK).to(weight_NK.dtype)
        grad_bias_N = grad_MN.sum(0, dtype=weight_NK.dtype) if ctx.needs_input_grad[2] else None
        return grad_x_MK, grad_weight_NK, grad_bias_N


class _FeedForwardContext(Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool, bool, bool]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _FeedForward(torch.autograd.Function):  # pragma: needs cuda
    """down(gelu(up(x))); D width, F inner width."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: _FeedForwardContext,
        x_MD: Tensor,
        up_FD: Tensor,
        up_bias_F: Tensor,
        down_DF: Tensor,
        down_bias_D: Tensor,
    ) -> Tensor:
        x8_MD, x_scale_M1 = in_fp8(x_MD)
        u_MF = _multiplied(x8_MD, x_scale_M1, up_FD, up_bias_F, dtype=x_MD.dtype)
        h8_MF, h_scale_M1 = torch.ops.model_trainer.gelu_in_fp8(u_MF)
        ctx.save_for_backward(x_MD, x_scale_M1, up_FD, u_MF, h8_MF, h_scale_M1, down_DF)
        return _multiplied(h8_MF, h_scale_M1, down_DF, down_bias_D, dtype=x_MD.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _FeedForwardContext, grad_MD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        x_MD, x_scale_M1, up_FD, u_MF, h8_MF, h_scale_M1, down_DF = ctx.saved_tensors
        grad8_MD, scale_M1 = in_fp8(grad_MD)
        grad_h_MF = _multiplied(grad8_MD, scale_M1, down_DF.t(), None, dtype=grad_MD.dtype)
        h8_FM, grad8_DM, down_scale = over_tokens(h8_MF, h_scale_M1, grad_MD, scale_M1)
        gradient = torch.ops.model_trainer.gelu_gradient_in_fp8(grad_h_MF, u_MF)
        grad_u8_MF, u_scale_M1, sums_PF = gradient
        grad_u8_FM, x8_DM, up_scale = over_tokens(grad_u8_MF, u_scale_M1, x_MD, x_scale_M1)
        return (
            _multiplied(grad_u8_MF, u_scale_M1, up_FD.t(), None, dtype=x_MD.dtype),
            summed(grad_u8_FM, x8_DM, up_scale).to(up_FD.dtype),
            sums_PF.sum(0).to(up_FD.dtype),
            summed(grad8_DM, h8_FM, down_scale).to(down_DF.dtype),
            grad_MD.sum(0, dtype=down_DF.dtype) if ctx.needs_input_grad[4] else None,
        )


@torch.library.custom_op(
    "model_trainer::gelu_in_fp8",
    mutates_args=(),
    schema="(Tensor u_MF) -> (Tensor, Tensor)",
)
def _gelu_in_fp8(u_MF: Tensor) -> tuple[Tensor, Tensor]:  # pragma: needs cuda
    from trainer_app.core.fp8_kernels import gelu_in_fp8  # noqa: PLC0415 - needs Triton

    return gelu_in_fp8(u_MF)


@_gelu_in_fp8.register_fake
def _(u_MF: Tensor) -> tuple[Tensor, Tensor]:  # pragma: needs cuda
    return torch.empty_like(u_MF, dtype=FP8), u_MF.new_empty(len(u_MF), 1, dtype=torch.float32)


@torch.library.custom_op(
    "model_trainer::gelu_gradient_in_fp8",
    mutates_args=(),
    schema="(Tensor grad_MF, Tensor u_MF) -> (Tensor, Tensor, Tensor)",
)
def _gelu_gradient_in_fp8(  # pragma: needs cuda
    grad_MF: Tensor, u_MF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from trainer_app.core.fp8_kernels import gelu_gradient_in_fp8  # noqa: PLC0415 - needs Triton

    return gelu_gradient_in_fp8(grad_MF.contiguous(), u_MF)


@_gelu_gradient_in_fp8.register_fake
def _(  # pragma: needs cuda
    grad_MF: Tensor,  # noqa: ARG001 - the schema's
    u_MF: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    scales_M1 = u_MF.new_empty(len(u_MF), 1, dtype=torch.float32)
    sums_PF = u_MF.new_empty(programs(u_MF), u_MF.shape[1], dtype=torch.float32)
    return torch.empty_like(u_MF, dtype=FP8), scales_M1, sums_PF


@torch.library.custom_op(
    "model_trainer::transposed", mutates_args=(), schema="(Tensor x8_MN) -> Tensor"
)
def _transposed(x8_MN: Tensor) -> Tensor:  # pragma: needs cuda
    from trainer_app.core.fp8_kernels import transposed  # noqa: PLC0415 - needs Triton

    return transposed(x8_MN.contiguous())


@_transposed.register_fake
def _(x8_MN: Tensor) -> Tensor:  # pragma: needs cuda
    return x8_MN.new_empty(x8_MN.shape[1], padded(len(x8_MN), EIGHT_BITS))


@torch.library.custom_op(
    "model_trainer::folded",
    mutates_args=(),
    schema="(Tensor x_MN, Tensor scale_M1, Tensor scale) -> Tensor",
)
def _folded(x_MN: Tensor, scale_M1: Tensor, scale: Tensor) -> Tensor:  # pragma: needs cuda
    from trainer_app.core.fp8_kernels import folded  # noqa: PLC0415 - needs Triton

    return folded(x_MN.contiguous(), scale_M1, scale)


@_folded.register_fake
def _(  # pragma: needs cuda
    x_MN: Tensor,
    scale_M1: Tensor,  # noqa: ARG001 - the schema's
    scale: Tensor,  # noqa: ARG001
) -> Tensor:
    return x_MN.new_empty(x_MN.shape[1], padded(len(x_MN), EIGHT_BITS), dtype=FP8)


def programs(u_MF: Tensor) -> int:  # pragma: needs cuda
    """How many share the rows of a GELU's gradient: as many as run at once."""
    properties = torch.cuda.get_device_properties(u_MF.device)
    return min(len(u_MF), PROGRAMS * properties.multi_processor_count)


def _product(  # pragma: needs cuda
    x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """x weight^T + bias, (M, N), in the precision of x."""
    return _multiplied(*in_fp8(x_MK), weight_NK, bias_N, dtype=x_MK.dtype)


def _multiplied(  # pragma: needs cuda
    x8_MK: Tensor,
    scale_M1: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    weight8_NK, weight_scale_N1 = in_fp8(weight_NK)
    bias_N = None if bias_N is None else bias_N.to(dtype)
    return scaled_product(x8_MK, scale_M1, weight8_NK, weight_scale_N1, bias_N, dtype=dtype)


def scaled_product(  # pragma: needs cuda
    x8_MK: Tensor,
    scale_M1: Tensor,
    weight8_NK: Tensor,
    weight_scale_N1: Tensor,
    bias_N: Tensor | None = None,
    *,
    dtype: torch.dtype,
    fast: bool = True,
) -> Tensor:
    """x weight^T + bias, (M, N), of operands in fp8 whose rows have scales.

    ``fast``: summed up in some 14 bits, where no number of a sum is thousands of times another.
    """
    return torch._scaled_mm(  # noqa: SLF001 - torch's compiler knows the public one too short a time
        x8_MK,
        weight8_NK.t(),
        bias=bias_N,
        scale_a=scale_M1,
        scale_b=weight_scale_N1.t(),
        out_dtype=dtype,
        use_fast_accum=fast,
    )


def over_tokens(  # pragma: needs cuda
    x8_MN: Tensor, x_scale_M1: Tensor, y_MK: Tensor, y_scale_M1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operands (N, M) and (K, M) of a sum of x y^T over all rows, and its scale.

    ``y_scale_M1`` is what ``in_fp8`` gives for y. A GPU multiplies fp8 along what is contiguous:
    both are transposed. x stays as it is, and its rows' scales are multiplied into y.
    """
    scale = (x_scale_M1 * y_scale_M1).amax()
    x8_NM = torch.ops.model_trainer.transposed(x8_MN)
    return x8_NM, torch.ops.model_trainer.folded(y_MK, x_scale_M1, scale), scale


def summed(a8_NM: Tensor, b8_KM: Tensor, scale: Tensor) -> Tensor:  # pragma: needs cuda
    """scale a b^T, (N, K) in float32."""
    return torch._scaled_mm(  # noqa: SLF001 - as above
        a8_NM,
        b8_KM.t(),
        scale_a=scale,
        scale_b=torch.ones_like(scale),
        out_dtype=torch.float32,
        use_fast_accum=False,  # of a row that weighs more, the others are not to be lost
    )


def in_fp8(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in fp8, and what each is to be multiplied by (M, 1) to be itself again."""
    top_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().clamp(min=SMALLEST_ROW)
    scaled_MK = x_MK.float() * (LARGEST / top_M1)
    return scaled_MK.to(FP8).contiguous(), top_M1 / LARGEST
