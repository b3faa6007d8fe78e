"""llama and qwen against transformers' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from operator import methodcaller
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from backends.contracts import CausalModel, ModelConfig
from backends.loading import load_model, model_family
from backends.models import files, llama, qwen
from backends.models.llama_format import _BIASES, _COMPUTED, LlamaFormatFamily
from backends.models.transformer import Transformer
from trainer_app.errors import ModelIncompatible

VOCAB = 40
CONTEXT = 24
SMALL: dict[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def small(kind: type[PretrainedConfig], **fields: object) -> PretrainedConfig:
    config: PretrainedConfig = kind.from_dict(SMALL | fields)
    return config


# Short contexts, so that few pairs of few positions lie on each side of the methods' bounds.
LLAMA3: dict[str, object] = {
    "rope_type": "llama3",
    "rope_theta": 20.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 12,
}
YARN: dict[str, object] = {
    "rope_type": "yarn",
    "rope_theta": 20.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
}
ROTARY: Mapping[str, dict[str, object]] = {
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn between bounds of its own": YARN
    | {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.25},
    "yarn with weighed logarithms": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
    "yarn with bounds that meet": YARN | {"beta_fast": 1.4, "beta_slow": 1.4, "truncate": False},
    "yarn with a bound beyond the last pair": YARN | {"beta_slow": 0.001},
}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama": small(LlamaConfig),
    "llama of another eps, theta and head width, tied": small(
        LlamaConfig,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        head_dim=12,
        tie_word_embeddings=True,
    ),
    "llama with one head of keys": small(LlamaConfig, num_key_value_heads=1),
    "llama with silu under its other name": small(LlamaConfig, hidden_act="swish"),
    "llama without grouped keys": small(LlamaConfig, num_key_value_heads=None),
    "qwen3": small(Qwen3Config, head_dim=16),
    "qwen3 tied": small(Qwen3Config, head_dim=8, tie_word_embeddings=True),
    "qwen2": small(Qwen2Config),
    "qwen2 tied": small(Qwen2Config, tie_word_embeddings=True),
    "llama with biases of attention": small(LlamaConfig, attention_bias=True),
    "llama with biases of the feed-forward layer": small(LlamaConfig, mlp_bias=True),
    "llama with all biases": small(LlamaConfig, attention_bias=True, mlp_bias=True),
    "qwen3 with biases of attention": small(Qwen3Config, head_dim=16, attention_bias=True),
    "qwen2 with yarn": small(Qwen2Config, rope_parameters=dict(YARN)),
    "qwen3 with yarn": small(Qwen3Config, head_dim=16, rope_parameters=dict(YARN)),
    **{
        f"llama with {name}": small(LlamaConfig, head_dim=16, rope_parameters=dict(rotary))
        for name, rotary in ROTARY.items()
    },
}
CLASSES: Mapping[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "qwen2": Qwen2ForCausalLM,
}


def scramble(model: torch.nn.Module) -> None:
    """Weights that matter, norms and biases too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)


def transformers_model(config: PretrainedConfig) -> PreTrainedModel:
    model = CLASSES[config.model_type](config)
    scramble(model)
    model.train(False)
    return model


def some_ids(batch: int = 3) -> torch.Tensor:
    return torch.randint(4, VOCAB, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def assert_same_logits(ours: CausalModel, theirs: torch.nn.Module) -> None:
    expected_BTV = theirs(some_ids()).logits
    assert expected_BTV.std() > 0.1
    torch.testing.assert_close(ours(some_ids()), expected_BTV, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def greedy(model: CausalModel, prompt_BT: torch.Tensor, tokens: int) -> list[list[int]]:
    cache = model.new_cache(len(prompt_BT), CONTEXT)
    ids_BT = prompt_BT
    for _ in range(tokens):
        part_BT = ids_BT[:, cache.length :]
        ids_BT = torch.cat((ids_BT, model.decode(part_BT, cache).argmax(-1, keepdim=True)), dim=1)
    result: list[list[int]] = ids_BT.tolist()
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_we_compute_the_same_logits_from_their_files(name: str, tmp_path: Path) -> None:
    theirs = transformers_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert_same_logits(ours, theirs)
    assert ours.config == ModelConfig(
        family="qwen" if name.startswith("qwen") else "llama",
        size="custom",
        vocab_size=VOCAB,
        max_seq_len=CONTEXT,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_of_it_is_read_by_transformers(name: str, tmp_path: Path) -> None:
    theirs = transformers_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    model_family(ours.config.family).save(ours, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    assert_same_logits(ours, again)
    kept = {"tie_word_embeddings", "rope_parameters", "head_dim", "attention_bias", "mlp_bias"}
    before, after = CONFIGS[name].to_dict(), again.config.to_dict()
    for field in kept & before.keys():
        assert after[field] == before[field]


@pytest.mark.parametrize("name", ["llama", "qwen"])
@torch.inference_mode()
def test_transformers_computes_the_same_logits_from_our_files(name: str, tmp_path: Path) -> None:
    family = model_family(name)
    ours = family.build(
        ModelConfig(family=name, size="tiny", vocab_size=VOCAB, max_seq_len=CONTEXT)
    )
    scramble(ours)
    family.save(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(ours, theirs)
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == 3
    assert (theirs.config.pad_token_id, theirs.config.bos_token_id) == (0, 2)
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert parameters == family.parameter_count(ours.config)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_generation_gives_their_tokens(name: str, tmp_path: Path) -> None:
    transformers_model(CONFIGS[name]).save_pretrained(tmp_path)
    prompt_BT = some_ids(2)[:, :5]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    # As a direct call it does not type: their annotation of self is of another class.
    generate = methodcaller(
        "generate",
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        do_sample=False,
        max_new_tokens=CONTEXT - 5,
        min_new_tokens=CONTEXT - 5,
        eos_token_id=None,
    )
    expected = generate(theirs)
    assert isinstance(expected, torch.Tensor)
    assert greedy(load_model(tmp_path), prompt_BT, CONTEXT - 5) == expected.tolist()


@pytest.mark.parametrize(
    ("family", "size", "vocab_size", "millions"),
    [
        ("llama", "small", 49_152, 134.52),  # SmolLM2-135M
        ("llama", "medium", 49_152, 361.8),  # SmolLM2-360M
        ("llama", "large", 32_000, 1_100.0),  # TinyLlama-1.1B
        ("llama", "xl", 49_152, 1_711.4),  # SmolLM2-1.7B
        ("qwen", "medium", 151_936, 596.0),  # Qwen3-0.6B
        ("qwen", "large", 151_936, 1_720.6),  # Qwen3-1.7B
        ("qwen", "xl", 151_936, 4_022.5),  # Qwen3-4B
    ],
)
def test_the_sizes_are_the_published_ones(
    family: str, size: str, vocab_size: int, millions: float
) -> None:
    config = ModelConfig(family=family, size=size, vocab_size=vocab_size, max_seq_len=8)
    assert model_family(family).parameter_count(config) / 1e6 == pytest.approx(millions, rel=2e-4)


def test_a_size_is_known_by_its_shape_and_its_generation(tmp_path: Path) -> None:
    config = ModelConfig(family="qwen", size="tiny", vocab_size=VOCAB, max_seq_len=CONTEXT)
    for design, size in ((qwen.QWEN3, "tiny"), (qwen.QWEN2, "custom")):
        model = Transformer(config, design, qwen.SIZES["tiny"])
        model.initialise()
        qwen.FAMILY.save(model, tmp_path)
        assert load_model(tmp_path).config == replace(config, size=size)


@pytest.fixture(scope="module")
def theirs() -> PreTrainedModel:
    return transformers_model(CONFIGS["llama"])


@pytest.fixture(scope="module")
def tied() -> PreTrainedModel:
    return transformers_model(CONFIGS["qwen3 tied"])


def change_config(folder: Path, changes: Mapping[str, object], *without: str) -> None:
    path = folder / files.CONFIG_FILE
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in without}))


def change_weights(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(folder / files.WEIGHTS_FILE), **changes}
    kept = {name: t.clone() for name, t in tensors.items() if t is not None}
    save_file(kept, folder / files.WEIGHTS_FILE)


def test_shards_and_half_precision_are_read(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        halves = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(shard).items()}
        save_file(halves, shard, metadata={"format": "pt"})
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(load_model(tmp_path), half)


def test_files_of_older_versions_are_read(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    change_config(
        tmp_path,
        {"rope_theta": 10_000, "rope_scaling": None, "pretraining_tp": 1},
        "rope_parameters",
        "head_dim",
    )
    angles = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    change_weights(tmp_path, angles)
    assert_same_logits(load_model(tmp_path), theirs)


def test_a_qwen3_that_does_not_say_how_wide_its_heads_are_has_those_of_the_published_ones(
    tmp_path: Path,
) -> None:
    model = transformers_model(small(Qwen3Config))
    assert model.config.head_dim == 128
    model.save_pretrained(tmp_path)
    change_config(tmp_path, {}, "head_dim")
    assert_same_logits(load_model(tmp_path), model)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_in_files_of_older_versions_are_read(
    kind: str, theirs: PreTrainedModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    scaling = {"type": kind, "factor": 2.0}
    change_config(
        tmp_path, {"rope_theta": 50, "rope_scaling": scaling}, "rope_parameters", "head_dim"
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters["rope_theta"] == 50
    assert_same_logits(load_model(tmp_path), again)


def test_files_without_the_prefix_are_read(tied: PreTrainedModel, tmp_path: Path) -> None:
    tied.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / files.WEIGHTS_FILE)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / files.WEIGHTS_FILE)
    assert_same_logits(load_model(tmp_path), tied)


def test_a_copy_of_the_embedding_as_the_head_of_a_tied_model_is_read(
    tied: PreTrainedModel, tmp_path: Path
) -> None:
    tied.save_pretrained(tmp_path)
    embedding = load_file(tmp_path / files.WEIGHTS_FILE)["model.embed_tokens.weight"]
    change_weights(tmp_path, {"lm_head.weight": embedding})
    assert_same_logits(load_model(tmp_path), tied)
    change_weights(tmp_path, {"lm_head.weight": embedding + 1})
    with pytest.raises(ModelIncompatible, match=r"lm_head\.weight differs from the embedding"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; supported: False"),
        ({"attention_bias": True}, r"q_proj\.bias is missing"),
        ({"mlp_bias": True}, r"gate_proj\.bias is missing"),
        (
            {"mlp_bias": True, "model_type": "qwen3"},
            "mlp_bias is True; supported: False",
        ),
        (
            {"attention_bias": True, "model_type": "qwen2"},
            "attention_bias is True; supported: False",
        ),
        ({"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*sliding"),
        ({"layer_types": "sliding"}, "layer_types is 'sliding'"),
        ({"layer_types": [[]]}, r"layer_types is \[\[\]\]; supported"),
        ({"layer_types": ["full_attention", {}]}, r"layer_types is \['full_attention', {}\]"),
        ({"layer_types": []}, r"layer_types is \[\]; supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters is .*longrope"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters is .*yarn"),
        ({"rope_parameters": YARN | {"mrope_section": [1]}}, "rope_parameters is .*; supported"),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters is .*factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor is None, not"),
        (
            {"rope_parameters": LLAMA3 | {"low_freq_factor": 3}},
            r"high_freq_factor 3\.0 is not above low_freq_factor 3\.0",
        ),
        ({"rope_parameters": YARN | {"rope_theta": 1}}, r"rope_theta is 1\.0; yarn needs more"),
        ({"rope_parameters": YARN | {"truncate": 1}}, "truncate is 1, not true or false"),
        (
            {"rope_parameters": {"rope_theta": 1e-300}},
            r"rope_theta is 1e-300; supported: 1e-06 to 1e\+12",
        ),
        ({"rope_parameters": YARN | {"beta_fast": 1e308}}, r"beta_fast is 1e\+308; supported"),
        ({"rope_parameters": YARN | {"beta_slow": 1e-320}}, r"beta_slow is 1e-320; supported"),
        ({"rope_parameters": YARN | {"factor": 0.5}}, r"factor is 0\.5; supported: 1 or more"),
        ({"rope_parameters": YARN | {"factor": 10**400}}, r"factor is 1000.*, not a positive"),
        ({"rope_parameters": YARN | {"mscale": 0}}, "mscale is 0, not a positive number"),
        (
            {"rope_parameters": YARN | {"original_max_position_embeddings": 1.5}},
            "original_max_position_embeddings is 1.5, not a whole number",
        ),
        ({"original_max_position_embeddings": 12}, "original_max_position_embeddings is 12"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is None, not a positive number"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters is .*0.5"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x', not a positive number"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*bits"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a positive number"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, not a positive number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        (
            {"num_key_value_heads": 0},
            "num_key_value_heads is 0, not a whole number of 1 to 16777216",
        ),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"head_dim": 1026}, "head_dim 1026 is beyond 1024"),
        (
            {"head_dim": 65_536, "max_position_embeddings": 1 << 20},
            "head_dim 65536 is beyond 1024, the most that is supported",
        ),
        (
            {"head_dim": None, "hidden_size": 1 << 24, "num_attention_heads": 1}
            | {"num_key_value_heads": 1},
            "head_dim 16777216 is beyond 1024",
        ),
        (
            {"head_dim": 258, "max_position_embeddings": 1 << 20},
            "max_position_embeddings 1048576 with head_dim 258 needs tables of more than",
        ),
        ({"head_dim": 16}, r"q_proj\.weight has shape \(32, 32\), the model needs \(64, 32\)"),
        ({"hidden_size": 64}, r"embed_tokens\.weight has shape \(40, 32\).* \(40, 64\)"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight has shape \(16, 32\)"),
        ({"intermediate_size": 60}, r"gate_proj\.weight has shape \(56, 32\)"),
        ({"num_hidden_layers": 3}, r"layers\.2\.\S* is missing"),
        ({"num_hidden_layers": 1}, r"layers\.1\.\S* does not belong to this model"),
        ({"tie_word_embeddings": True}, r"lm_head\.weight differs from the embedding"),
        ({"vocab_size": 41}, r"has shape \(40, 32\), the model needs \(41, 32\)"),
        ({"max_position_embeddings": 1 << 21}, "a context of 2097152 tokens is beyond"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": "qwen3"}, r"q_norm\.weight is missing"),
        ({"model_type": "qwen2"}, r"q_proj\.bias is missing"),
    ],
)
def test_a_config_that_is_not_computed_or_does_not_fit_is_refused(
    changes: dict[str, object], message: str, theirs: PreTrainedModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    change_config(tmp_path, changes)
    with pytest.raises(ModelIncompatible, match=message):
        load_model(tmp_path)


def test_a_head_that_is_missing_is_refused(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    change_weights(tmp_path, {"lm_head.weight": None})
    with pytest.raises(ModelIncompatible, match=r"lm_head\.weight is missing"):
        load_model(tmp_path)


def test_every_field_of_transformers_configs_is_computed_refused_or_without_effect() -> None:
    read = {*SMALL, *_COMPUTED, *_BIASES, "head_dim", "layer_types", "model_type", "rms_norm_eps"}
    read |= {"rope_parameters", "tie_word_embeddings"}
    # of training, of other ways to run the same model, or given effect by use_sliding_window
    without_effect = {"attention_dropout", "initializer_range", "pretraining_tp", "use_cache"}
    without_effect |= {"sliding_window", "max_window_layers"}
    for config in (LlamaConfig, Qwen2Config, Qwen3Config):
        fields = config().to_dict().keys() - PretrainedConfig().to_dict().keys()
        assert fields - read - without_effect == set()


@pytest.mark.parametrize("family", [llama.FAMILY, qwen.FAMILY])
def test_the_weights_start_small_and_the_norms_at_one(family: LlamaFormatFamily) -> None:
    torch.manual_seed(0)
    config = ModelConfig(family=family.name, size="mini", vocab_size=300, max_seq_len=64)
    weights = family.build(config).state_dict()
    residual_std = 0.02 / 8**0.5
    assert weights["h.0.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["h.3.mlp_proj.weight"].std().item() == pytest.approx(residual_std, rel=0.02)
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]
    assert len(norms) == 9 + 8 * family.design.qk_norm
    assert all((tensor == 1).all() for tensor in norms)
    assert not any("bias" in name or "table" in name for name in weights)
