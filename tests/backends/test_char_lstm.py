"""The recurrent family's own properties."""

from __future__ import annotations

import pytest
import torch

from backends.contracts import ModelConfig
from backends.models.char_lstm import FAMILY


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(family="char_lstm", size="tiny", vocab_size=30, max_seq_len=8)
    return FAMILY.build(config)


@torch.inference_mode()
def test_the_context_has_no_end() -> None:
    model = build().eval()
    ids_BT = torch.randint(30, (1, 100), generator=torch.Generator().manual_seed(1))
    changed_BT = ids_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % 30
    assert model(ids_BT).shape == (1, 100, 30)
    early_BTV = model(ids_BT)[:, :20] - model(changed_BT)[:, :20]
    assert (early_BTV.abs().amax(dim=(0, 2)) > 0).all()  # past its training length of 8 too


def test_dropout_is_for_training_alone() -> None:
    model = build()
    ids_BT = torch.zeros(2, 8, dtype=torch.long)
    assert not torch.equal(model(ids_BT), model(ids_BT))
    model.eval()
    assert torch.equal(model(ids_BT), model(ids_BT))


def test_the_weights_start_as_torch_draws_them_but_for_the_biases() -> None:
    weights = build().state_dict()
    assert weights["embedding.weight"].std().item() == pytest.approx(1.0, rel=0.05)
    for name in ("lstm.weight_hh_l1", "head.weight"):
        assert weights[name].abs().max().item() == pytest.approx(1 / 256**0.5, rel=0.01)
    assert not any(tensor.any() for name, tensor in weights.items() if "bias" in name)
