"""Linear layers in eight bits, as far as a CPU can compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.contracts import ModelConfig
from backends.models.gpt2 import DESIGN as GPT2
from backends.models.gpt2 import gpt2_shape
from backends.models.transformer import Block, Design, Transformer
from trainer_app.core import loss
from trainer_app.core.compilation import Compilation
from trainer_app.core.fp8 import WIDEST, Float8Block, Float8Linear, in_fp8, use_fp8

CONFIG = ModelConfig(family="gpt2", size="tiny", vocab_size=32, max_seq_len=8)


def test_each_row_keeps_its_own_range() -> None:
    x_MK = torch.tensor([[1.0, -2.0, 0.5], [1e-5, 3e-5, 0.0], [0.0, 0.0, 0.0]])
    x8_MK, scale_M1 = in_fp8(x_MK)
    assert x8_MK.dtype == torch.float8_e4m3fn
    assert x8_MK.float().abs().amax(dim=1).tolist() == [448.0, 448.0, 0.0]
    torch.testing.assert_close(x8_MK.float() * scale_M1, x_MK, rtol=0.07, atol=0.0)


def test_layers_of_sizes_that_the_gpu_multiplies_are_taken_and_others_left() -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 10))
    use_fp8(model, fused=True)
    assert [type(part) for part in model] == [Float8Linear, nn.GELU, nn.Linear]
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize("bias", [True, False])
def test_where_nothing_is_trained_the_layer_computes_as_before(bias: bool) -> None:
    plain = nn.Linear(32, 48, bias=bias)
    x = torch.randn(5, 7, 32)
    expected = plain(x)
    use_fp8(nn.Sequential(plain), fused=False)
    assert torch.equal(plain(x), expected)
    assert torch.equal(plain.eval()(x), expected)


def test_blocks_with_gelu_are_fused_and_others_are_not() -> None:
    def block(design: Design, inner: int | None = None) -> Block:
        shape = gpt2_shape(width=64, layers=1, heads=2, inner=inner)
        model = Transformer(CONFIG, design, shape)
        use_fp8(model, fused=True)
        found = model.h[0]
        assert isinstance(found, Block)
        return found

    assert type(block(GPT2)) is Float8Block
    assert type(block(replace(GPT2, feed_forward="swiglu"))) is Block
    assert type(block(replace(GPT2, bias=False))) is Block
    assert type(block(GPT2, inner=WIDEST + 16)) is Block
    assert type(block(GPT2, inner=100)) is Block


def test_a_fused_block_computes_as_before_where_nothing_is_trained() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG, GPT2, gpt2_shape(width=64, layers=1, heads=2))
    model.initialise()
    ids = torch.arange(12).view(2, 6)
    expected = model.hidden(ids)
    use_fp8(model, fused=True)
    assert torch.equal(model.hidden(ids), expected)


@pytest.mark.parametrize("uses_fp8", [True, False])
def test_the_head_is_compiled_where_the_model_is_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, uses_fp8: bool
) -> None:
    called: list[str] = []
    for name in ("fp8_product", "compiled_fp8_product"):

        def product(x_MK: Tensor, weight_NK: Tensor, name: str = name) -> Tensor:
            called.append(name)
            return F.linear(x_MK, weight_NK)

        monkeypatch.setattr(loss, name, product)

    def taken(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        *,
        multiply: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        return F.cross_entropy(multiply(hidden_ND, weight_VD), targets_N)

    monkeypatch.setattr(loss, "next_token_loss", taken)
    monkeypatch.setattr(torch, "compile", lambda hidden, **_: hidden)
    model = Transformer(CONFIG, GPT2, gpt2_shape(width=64, layers=1, heads=2))
    model.initialise()
    made = loss.LanguageModelLoss(model, fp8=uses_fp8)
    compilation = Compilation(model, choice="on", name="a model")
    ids = torch.arange(12).view(2, 6)
    made(ids, ids)
    compilation.compile(lambda: None, lambda: None)
    with compilation.in_use():
        made(ids, ids)
        made.eval()(ids, ids)
    made.train()(ids, ids)
    expected = ["fp8_product", "compiled_fp8_product", "fp8_product"]
    assert called == (expected if uses_fp8 else [])
