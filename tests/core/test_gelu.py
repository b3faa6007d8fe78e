"""Blocks whose GELU has a kernel of its own, as far as a CPU can compute them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backends.contracts import ModelConfig
from backends.models.gpt2 import DESIGN as GPT2
from backends.models.gpt2 import gpt2_shape
from backends.models.transformer import Block, Design, Transformer
from trainer_app.core import gelu
from trainer_app.core.gelu import GeluBlock, use_gelu_kernel
from trainer_app.core.layers import use_kernels

CONFIG = ModelConfig(family="gpt2", size="tiny", vocab_size=32, max_seq_len=8)


def model_of(design: Design) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG, design, gpt2_shape(width=64, layers=1, heads=2))
    model.initialise()
    return model


@pytest.mark.parametrize(
    ("design", "kind"),
    [
        (GPT2, GeluBlock),
        (replace(GPT2, feed_forward="swiglu"), Block),
        (replace(GPT2, bias=False), Block),
    ],
)
def test_blocks_with_gelu_behind_a_bias_are_given_the_kernel_and_others_are_not(
    design: Design, kind: type[Block]
) -> None:
    model = model_of(design)
    use_gelu_kernel(model)
    assert type(model.h[0]) is kind


@pytest.mark.parametrize("fewest", [1, 1 << 26])
def test_without_half_precision_on_a_gpu_they_compute_as_before(
    monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    monkeypatch.setattr(gelu, "FEWEST", fewest)
    model = model_of(GPT2)
    ids = torch.arange(12).view(2, 6)
    expected = model.hidden(ids)
    use_gelu_kernel(model)
    assert torch.equal(model.hidden(ids), expected)


def test_a_model_in_float32_is_left_as_it_is() -> None:
    model = model_of(GPT2)
    use_kernels(model, "fp32", pytest.fail)
    assert type(model.h[0]) is Block
