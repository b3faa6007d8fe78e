"""Linear layers in eight bits, as far as a CPU can compute them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.contracts import ModelConfig
from backends.models.gpt2 import DESIGN as GPT2
from backends.models.gpt2 import gpt2_shape
from backends.models.transformer import Block, Design, Transformer
from trainer_app.core import fp8_loss, loss
from trainer_app.core.fp8 import WIDEST, Float8Block, Float8Linear, in_fp8, use_fp8
from trainer_app.core.padding import EIGHT_BITS, padded

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


def test_the_loss_is_in_fp8_where_that_is_asked_for_and_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_of: list[int] = []

    def taken(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        asked_of.append(len(weight_VD))
        return F.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N)

    monkeypatch.setattr(fp8_loss, "loss_in_fp8", taken)
    monkeypatch.setattr(fp8_loss, "why_unfused", lambda: "no GPU")
    model = Transformer(CONFIG, GPT2, gpt2_shape(width=64, layers=1, heads=2))
    model.initialise()
    ids = torch.arange(12).view(2, 6)
    with_fp8, without = loss.LanguageModelLoss(model, fp8=True), loss.LanguageModelLoss(model)
    expected = without(ids, ids)
    assert torch.equal(with_fp8(ids, ids), expected)
    monkeypatch.setattr(fp8_loss, "why_unfused", lambda: None)
    assert torch.equal(with_fp8(ids, ids), expected)  # not under autocast
    monkeypatch.setattr(loss, "is_used", lambda module: module.training)
    torch.testing.assert_close(with_fp8(ids, ids), expected)
    with_fp8.eval()(ids, ids)
    without.train()(ids, ids)
    assert asked_of == [32]


@pytest.mark.parametrize(("width", "why"), [(64, None), (100, "100"), (WIDEST + 16, "8208")])
def test_hidden_states_of_a_width_without_kernels_are_left(
    monkeypatch: pytest.MonkeyPatch, width: int, why: str | None
) -> None:
    monkeypatch.setattr(fp8_loss, "why_unfused", lambda: None)
    expected = None if why is None else f"a width of {why} is no multiple of 16 up to 8192"
    assert fp8_loss.why_not(width) == expected


def test_on_a_gpu_that_has_no_kernels_the_head_has_none_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fp8_loss, "why_unfused", lambda: "no GPU")
    assert fp8_loss.why_not(64) == "no GPU"


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_a_size_is_padded_to_the_next_multiple(count: int, expected: int) -> None:
    assert padded(count, EIGHT_BITS) == expected
