"""GPT-2 against transformers' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from backends.contracts import ModelConfig
from backends.loading import load_model
from backends.models.gpt2 import FAMILY, SIZES
from backends.models.transformer import Shape
from trainer_app.errors import ModelIncompatible

VOCAB = 40
CONTEXT = 24
SMALL: dict[str, object] = {
    "vocab_size": VOCAB,
    "n_positions": CONTEXT,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VARIANTS: Mapping[str, dict[str, object]] = {
    "as published": {},
    "another inner width": {"n_inner": 100},
    "another eps": {"layer_norm_epsilon": 1e-2},
    "a head of its own": {"tie_word_embeddings": False},
    **{
        f"the activation called {name}": {"activation_function": name}
        for name in ("gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
    },
}


def some_ids() -> torch.Tensor:
    return torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def their_config(**fields: object) -> GPT2Config:
    config: GPT2Config = GPT2Config.from_dict(SMALL | fields)
    return config


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return their_model()


def their_model(**fields: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(their_config(**fields))
    for parameter in model.parameters():  # biases and norms too, which start as 0 and 1
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.inference_mode()
def assert_same_logits(folder: Path, theirs: nn.Module) -> None:
    theirs.eval()  # no dropout
    expected_BTV = theirs(some_ids()).logits
    torch.testing.assert_close(load_model(folder)(some_ids()), expected_BTV, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_transformers_computes_the_same_logits_from_our_files(tmp_path: Path) -> None:
    config = ModelConfig(family="gpt2", size="tiny", vocab_size=VOCAB, max_seq_len=CONTEXT)
    ours = FAMILY.build(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    FAMILY.save(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(some_ids()), theirs(some_ids()).logits, rtol=1e-4, atol=1e-4)
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == 3
    assert theirs.config.pad_token_id == 0
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_we_compute_the_same_logits_from_their_files(
    theirs: GPT2LMHeadModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, theirs)
    assert load_model(tmp_path).config == ModelConfig(
        family="gpt2", size="custom", vocab_size=VOCAB, max_seq_len=CONTEXT
    )


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_variants_give_equal_logits_both_ways_and_token_by_token(name: str, tmp_path: Path) -> None:
    their_model(**VARIANTS[name]).save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert_same_logits(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path))
    FAMILY.save(ours, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(tmp_path, again)
    for field in ("n_inner", "layer_norm_epsilon", "tie_word_embeddings"):
        assert getattr(again.config, field) == getattr(their_config(**VARIANTS[name]), field)
    cache, ids_BT = ours.new_cache(3, CONTEXT), some_ids()
    by_token = [ours.decode(ids_BT[:, t : t + 1], cache) for t in range(CONTEXT)]
    torch.testing.assert_close(
        torch.stack(by_token, dim=1), again(ids_BT).logits, rtol=1e-4, atol=1e-5
    )


def test_shards_are_read_as_one(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(tmp_path, theirs)


@pytest.mark.parametrize("name", ["../model-1-of-2.safetensors", "/etc/passwd", 3])
def test_an_index_that_points_elsewhere_is_refused(
    name: object, theirs: GPT2LMHeadModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    index = {"weight_map": {"transformer.wte.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelIncompatible, match="names files that are no shards"):
        load_model(tmp_path)


def test_files_without_the_prefix_are_read(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    bare = GPT2Model(their_config())
    bare.load_state_dict(theirs.transformer.state_dict())
    bare.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, theirs)


def test_half_precision_and_the_mask_buffers_of_old_files_are_read(
    theirs: GPT2LMHeadModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(tmp_path, half)


def test_a_head_of_its_own_is_refused(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelIncompatible, match=r"lm_head\.weight differs"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'; supported: 'gelu_new'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; supported: 'gelu_new'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0, not a positive number"),
        ({"n_inner": 100}, r"c_fc\.bias has shape \(128,\), the model needs \(100,\)"),
        ({"n_inner": 0}, "n_inner is 0, not a whole number"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "char_lstm"}, "model_type"),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 32"),
        ({"n_head": 0}, "n_head is 0, not a whole number of 1 to 16777216"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_layer": "2"}, "n_layer is '2'"),
        ({"n_layer": 3}, r"transformer\.h\.2\.|h\.2\."),
        ({"n_layer": 1}, r"h\.1\..* does not belong to this model"),
        ({"vocab_size": 41}, r"wte\.weight has shape \(40, 32\), the model needs \(41, 32\)"),
    ],
)
def test_a_config_that_is_not_computed_or_does_not_fit_is_refused(
    change: dict[str, object], message: str, theirs: GPT2LMHeadModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelIncompatible, match=message):
        FAMILY.load(tmp_path)


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 0.4), ("small", 85), ("medium", 302), ("xl", 1475)]
)
def test_the_sizes_are_the_published_ones(size: str, millions: float) -> None:
    config = ModelConfig(family="gpt2", size=size, vocab_size=1, max_seq_len=1)
    assert FAMILY.parameter_count(config) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_weights_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    config = ModelConfig(family="gpt2", size="mini", vocab_size=300, max_seq_len=64)
    weights = FAMILY.build(config).state_dict()
    shape: Shape = SIZES["mini"]
    assert weights["h.0.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["h.3.mlp_proj.weight"].std().item() == pytest.approx(
        0.02 / (2 * shape.layers) ** 0.5, rel=0.02
    )
    assert weights["wpe.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["h.1.c_attn.bias"].abs().sum() == 0
    assert (weights["ln_f.weight"] == 1).all()
    assert (weights["h.1.ln_2.weight"] == 1).all()
