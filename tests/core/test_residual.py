"""Norms behind layers whose gradient is one operator: in place of its kernel, torch computes it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from backends.contracts import ModelConfig
from backends.models import transformer
from backends.models.gpt2 import DESIGN as GPT2
from backends.models.gpt2 import gpt2_shape
from backends.models.llama import DESIGN as LLAMA
from backends.models.qwen import QWEN3
from backends.models.transformer import Design, RMSNorm, Transformer
from trainer_app.core import residual
from trainer_app.core.fp8 import Float8Linear, use_fp8
from trainer_app.core.residual import (
    Float8StreamLinear,
    KernelNorm,
    KernelRMSNorm,
    LastKernelNorm,
    LastKernelRMSNorm,
    StreamLinear,
    use_norm_kernel,
)

CONFIG = ModelConfig(family="gpt2", size="tiny", vocab_size=32, max_seq_len=8)
WIDTH = 64
IDS_BT = torch.arange(12).view(2, 6)
PROGRAMS = 2

Gradients = dict[str, Tensor]


def model_of(design: Design = GPT2, width: int = WIDTH) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG, design, gpt2_shape(width=width, layers=2, heads=2))
    model.initialise()
    return model


def norm_gradient(
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,
    weight_D: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    normed = (x.float() if mean is None else x.float() - mean) * rstd
    scaled = grad.float() * weight_D.float()
    along, level = (t.mean(-1, keepdim=True) for t in (scaled * normed, scaled))
    out = (scaled - normed * along - (0.0 if mean is None else level)) * rstd
    out = (out if grad_x is None else out + grad_x.float()).to(x.dtype)
    half = x.new_empty(0) if grad.dtype == x.dtype else out.to(grad.dtype)
    summed = (grad.float() * normed, grad.float(), out.float())[: 1 if mean is None else 3]
    sums_SD = torch.stack([t.flatten(0, -2).sum(0) for t in summed])
    return out, half, torch.stack([sums_SD / PROGRAMS] * PROGRAMS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    """The operator computed by torch, and used in training as under autocast on a GPU.

    One for each call: of which precision the gradient was.
    """
    called: list[torch.dtype] = []

    def counted(
        grad: Tensor,
        x: Tensor,
        grad_x: Tensor | None,
        weight_D: Tensor,
        mean: Tensor | None,
        rstd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        called.append(grad.dtype)
        return norm_gradient(grad, x, grad_x, weight_D, mean, rstd)

    module = ModuleType("trainer_app.core.residual_kernels")
    monkeypatch.setattr(module, "norm_gradient", counted, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(residual, "programs", lambda _: PROGRAMS)
    monkeypatch.setattr(residual, "FEWEST", IDS_BT.numel() * WIDTH)
    # beside fp16, too, which asks the GPU
    monkeypatch.setattr(transformer, "_stream_dtype", stream_dtype)
    torch.set_autocast_enabled("cuda", True)
    yield called
    torch.set_autocast_enabled("cuda", False)


def stream_dtype(x: Tensor, *, training: bool) -> torch.dtype:
    return torch.bfloat16 if training and torch.is_autocast_enabled("cpu") else x.dtype


def gradients(
    model: Transformer, hidden: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Gradients:
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden_BTD = hidden(IDS_BT)
    torch.autograd.backward(hidden_BTD, torch.randn(hidden_BTD.shape).to(hidden_BTD.dtype))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def furthest(found: Gradients, expected: Gradients) -> float:
    """How far apart those of the worst parameter are, as a share of the expected ones' norm."""
    return max(
        float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by torch itself
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "design",
    [GPT2, LLAMA, QWEN3, replace(LLAMA, bias=True)],
    ids=["gpt2", "llama", "qwen", "llama with biases"],
)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)]
)
def test_all_gradients_are_those_without_it(
    calls: list[torch.dtype], design: Design, dtype: torch.dtype, rtol: float, compiled: bool
) -> None:
    model = model_of(design)
    expected = gradients(model, model.hidden, dtype)
    use_norm_kernel(model)
    hidden = torch.compile(model.hidden, backend="aot_eager") if compiled else model.hidden
    found = gradients(model, hidden, dtype)
    assert calls == [dtype] * 4  # behind each of four layers
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    assert furthest(found, expected) < rtol


@pytest.mark.parametrize("design", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_it_adds_up_over_passes_and_leaves_what_is_frozen(
    calls: list[torch.dtype], design: Design
) -> None:
    model = model_of(design)
    model.wte.requires_grad_(False)
    expected = gradients(model, model.hidden, torch.float32)
    use_norm_kernel(model)
    found = gradients(model, model.hidden, torch.float32)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys() - {"wte.weight"}
    once = {name: gradient.clone() for name, gradient in found.items()}
    torch.manual_seed(1)
    hidden_BTD = model.hidden(IDS_BT)
    torch.autograd.backward(hidden_BTD, torch.randn(hidden_BTD.shape))
    assert len(calls) == 8
    assert furthest(once, expected) < 1e-5
    torch.testing.assert_close(found, {name: 2 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize("design", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_stream_of_fewer_numbers_goes_without(
    calls: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, design: Design
) -> None:
    model = model_of(design)
    expected = gradients(model, model.hidden, torch.float32)
    use_norm_kernel(model)
    monkeypatch.setattr(residual, "FEWEST", residual.FEWEST + 1)
    found = gradients(model, model.hidden, torch.float32)
    assert not calls
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("design", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_what_is_not_trained_goes_without(calls: list[torch.dtype], design: Design) -> None:
    model = model_of(design).eval()
    expected = model.hidden(IDS_BT)
    use_norm_kernel(model)
    assert torch.equal(model.hidden(IDS_BT), expected)
    torch.autograd.backward(model.hidden(IDS_BT).sum())
    assert not calls


@pytest.mark.parametrize("design", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_without_half_precision_on_a_gpu_they_compute_as_before(design: Design) -> None:
    model = model_of(design)
    expected = model.hidden(IDS_BT)
    use_norm_kernel(model)
    assert torch.equal(model.hidden(IDS_BT), expected)


def test_layer_norms_behind_products_with_biases_are_given_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residual, "WIDEST", WIDTH)
    model = model_of()
    first, second = model.blocks()
    before = type(first.ln_1)
    use_norm_kernel(model)
    assert type(first.ln_1) is before  # behind no layer
    assert {type(norm) for norm in (first.ln_2, second.ln_1, second.ln_2)} == {KernelNorm}
    assert type(model.ln_f) is LastKernelNorm
    assert {type(b.attn_proj) for b in (first, second)} == {StreamLinear}
    assert {type(b.mlp_proj) for b in (first, second)} == {StreamLinear}
    assert {type(b.c_attn) for b in (first, second)} == {nn.Linear}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Float8Linear])
def test_rms_norms_of_the_stream_are_given_it_and_the_products_before_them_left(
    kind: type[nn.Linear], bias: bool
) -> None:
    model = model_of(replace(QWEN3, bias=bias))
    first, second = model.blocks()
    if kind is Float8Linear:
        use_fp8(model, fused=False)
    use_norm_kernel(model)
    norms = (first.ln_2, second.ln_1, second.ln_2)
    assert {type(norm) for norm in norms} == {KernelRMSNorm}
    assert type(model.ln_f) is LastKernelRMSNorm
    of_heads = (first.q_norm, first.k_norm)
    assert {type(norm) for norm in (first.ln_1, *of_heads)} == {RMSNorm}
    products = (first.attn_proj, first.mlp_proj, first.c_attn, first.c_fc)
    assert {type(product) for product in products} == {kind}


@pytest.mark.parametrize(
    "model",
    [
        model_of(replace(GPT2, bias=False)),
        model_of(width=WIDTH + 2),
        model_of(LLAMA, width=WIDTH + 4),
    ],
    ids=["without biases", "too wide", "llama too wide"],
)
def test_others_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, model: Transformer) -> None:
    monkeypatch.setattr(residual, "WIDEST", WIDTH)
    before = [type(module) for module in model.modules()]
    use_norm_kernel(model)
    assert [type(module) for module in model.modules()] == before


def test_a_model_of_another_kind_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    use_norm_kernel(model)
    assert [type(part) for part in model] == [nn.Linear, nn.LayerNorm]


@pytest.mark.parametrize("used", [True, False])
def test_products_in_fp8_leave_their_bias_to_it_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    monkeypatch.setattr(residual, "_is_used", lambda *_: used)
    model = model_of()
    use_fp8(model, fused=False)
    use_norm_kernel(model)
    block = model.blocks()[0]
    assert type(block.attn_proj) is Float8StreamLinear
    assert type(block.c_fc) is Float8Linear
    bias_D = block.attn_proj.trained_bias(12)
    assert torch.equal(bias_D, block.attn_proj.bias)
    assert bias_D.requires_grad is not used
    left = block.c_fc.trained_bias(12)
    assert left is block.c_fc.bias
