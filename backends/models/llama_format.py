"""How llama and its descendants are published: the fields of config.json, the tensors' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch import Tensor

from backends.contracts import ModelConfig
from backends.json_files import shown
from backends.models import files, rope_config
from backends.models.rotary import Scaling, rotation_tables
from backends.models.transformer import INIT_STD, Design, Shape, Transformer
from backends.models.transformer_family import TransformerFamily
from trainer_app.errors import ModelIncompatible

# What an absent field means.
NORM_EPS: Final = 1e-6
QWEN3_HEAD_WIDTH: Final = 128  # that of others: width / heads
# What is built before there are weights to compare with: the published have up to 256, and the
# tables of their longest contexts half of these angles.
WIDEST_HEAD: Final = 1_024
MOST_ANGLES: Final = 1 << 27  # of rotary positions: half a GiB for each of two tables

# The values that mean what is computed here; None: an absent field.
_COMPUTED: Final[Mapping[str, tuple[object, ...]]] = {
    "hidden_act": ("silu", "swish", None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (None, 1.0),
    "original_max_position_embeddings": (None,),  # belongs into rope_parameters
    "quantization_config": (None,),
}
_BIASES: Final = ("attention_bias", "mlp_bias")

# Our names -> the published ones; a product of several is published in parts.
_NAMES: Final[Mapping[str, str]] = {
    "wte": "model.embed_tokens",
    "ln_f": "model.norm",
    "lm_head": "lm_head",
}
_BLOCK_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "ln_1": ("input_layernorm",),
    "c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "attn_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "c_fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_proj": ("mlp.down_proj",),
}


def _published_names(name: str) -> tuple[str, ...]:
    """``h.0.c_fc.weight`` -> ``model.layers.0.mlp.gate_proj.weight`` and that of up_proj."""
    *place, module, kind = name.split(".")
    if not place:
        return (f"{_NAMES[module]}.{kind}",)
    return tuple(f"model.layers.{place[1]}.{part}.{kind}" for part in _BLOCK_NAMES[module])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledShape(Shape):
    """A shape whose rotary positions are scaled, as those of none of our sizes are."""

    scaling: Scaling


class LlamaFormatFamily(TransformerFamily):
    """A family whose files read as llama's; ``designs`` and ``sizes`` say what is inside."""

    buffers = (".rotary_emb.inv_freq",)  # angles

    def __init__(
        self,
        name: str,
        *,
        designs: Mapping[str, Design],
        classes: Mapping[str, str],
        biases: Mapping[str, tuple[str, ...]],
        sizes: Mapping[str, Shape],
    ) -> None:
        """``designs`` by the model_type of config.json, the one that is built here first;
        ``classes``: transformers' class for each; ``biases``: which fields give each biases.
        """
        super().__init__(name, next(iter(designs.values())), sizes)
        self._designs = designs
        self._classes = classes
        self._biases = biases

    def published_config(self, model: Transformer) -> dict[str, object]:
        shape = model.shape
        model_type = next(
            t for t, design in self._designs.items() if design.qk_norm == model.design.qk_norm
        )
        block = model.get_submodule("h.0")
        attention_bias, mlp_bias = (
            f"{module}.bias" in block.state_dict() for module in ("attn_proj", "mlp_proj")
        )
        scaling = shape.scaling if isinstance(shape, ScaledShape) else None
        return {
            "architectures": [self._classes[model_type]],
            "attention_bias": attention_bias,  # qwen2's is no field of its config
            "attention_dropout": 0.0,
            "dtype": "float32",
            "head_dim": shape.head_width,
            "hidden_act": "silu",
            "hidden_size": shape.width,
            "initializer_range": INIT_STD,
            "intermediate_size": shape.inner,
            "max_position_embeddings": model.config.max_seq_len,
            "mlp_bias": mlp_bias,
            "model_type": model_type,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": shape.norm_eps,
            "rope_parameters": rope_config.published(shape.rope_theta, scaling),
            "rope_theta": shape.rope_theta,  # where transformers before 5 looks for it
            "tie_word_embeddings": shape.tied,
            "torch_dtype": "float32",  # the name that transformers before 5 reads
            "vocab_size": model.config.vocab_size,
        }

    def parsed_config(self, published: Mapping[str, object]) -> tuple[ModelConfig, Design, Shape]:
        files.require(published, {"model_type": tuple(self._designs), **_COMPUTED})
        model_type = str(published["model_type"])
        for field in _BIASES:
            known_values = (
                (False, True, None) if field in self._biases[model_type] else (False, None)
            )
            files.require(published, {field: known_values})
        layer_types = published.get("layer_types")
        if layer_types is not None and (
            not isinstance(layer_types, list)
            or not layer_types
            or any(kind != "full_attention" for kind in layer_types)
        ):
            raise ModelIncompatible(
                f"config.json: layer_types is {shown(layer_types)}; "
                "supported: 'full_attention' alone"
            )
        design = self._designs[model_type]
        attention_bias, mlp_bias = (published.get(field) is True for field in _BIASES)
        design = replace(
            design,
            qkv_bias=design.qkv_bias or attention_bias,
            bias=attention_bias or mlp_bias,
        )
        shape = _parsed_shape(published)
        known = self.sizes if design == self.design else {}
        config = ModelConfig(
            family=self.name,
            size=files.size_name(known, shape),
            vocab_size=files.integer(published, "vocab_size"),
            max_seq_len=files.integer(published, "max_position_embeddings"),
        )
        if config.max_seq_len * (shape.head_width // 2) > MOST_ANGLES:
            raise ModelIncompatible(
                f"config.json: max_position_embeddings {config.max_seq_len} with head_dim "
                f"{shape.head_width} needs tables of more than {MOST_ANGLES} angles"
            )
        return config, design, shape

    def adapt(self, model: Transformer, published: Mapping[str, object]) -> None:
        """Scale the rotary positions; remove the biases that one of the two fields leaves out."""
        shape = model.shape
        if isinstance(shape, ScaledShape):
            model.cos_table, model.sin_table = rotation_tables(
                model.config.max_seq_len,
                shape.head_width,
                shape.rope_theta,
                device="cpu",
                scaling=shape.scaling,
            )
        attention_bias, mlp_bias = (published.get(field) is True for field in _BIASES)
        without = [] if attention_bias else ["attn_proj"]
        without += [] if mlp_bias else ["c_fc", "mlp_proj"]
        for block in model.h:
            for module in without:
                block.get_submodule(module).register_parameter("bias", None)

    def published_tensors(self, model: Transformer) -> dict[str, Tensor]:
        published: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            parts = tensor.split(_rows(model, name, tensor))
            published |= zip(_published_names(name), parts, strict=True)
        return published

    def own_tensors(self, published: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        left = {
            name if name.startswith(("model.", "lm_head.")) else f"model.{name}": tensor
            for name, tensor in files.taken_out(published)
        }
        if model.shape.tied:
            files.drop_tied_head(left, "lm_head.weight", "model.embed_tokens.weight")
        ours = {
            name: _joined(left, _published_names(name), expected, _rows(model, name, expected))
            for name, expected in model.state_dict().items()
        }
        return ours | left


def _rows(model: Transformer, name: str, tensor: Tensor) -> tuple[int, ...]:
    """The rows of each of the tensors that one of ours is published as."""
    return model.blocks()[0].rows.get(name.split(".")[-2], (len(tensor),))


def _joined(
    left: dict[str, Tensor], names: tuple[str, ...], expected: Tensor, rows: tuple[int, ...]
) -> Tensor:
    """The published parts of one of our tensors, taken out of ``left``, as one.

    Raises ModelIncompatible, naming the part, where one is missing or has another shape.
    """
    parts = []
    for name, count in zip(names, rows, strict=True):
        part, shape = left.pop(name, None), (count, *expected.shape[1:])
        if part is None:
            raise ModelIncompatible(f"model.safetensors: {name} is missing")
        if part.shape != shape:
            raise ModelIncompatible(
                f"model.safetensors: {name} has shape {tuple(part.shape)}, the model needs {shape}"
            )
        parts.append(part)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _parsed_shape(published: Mapping[str, object]) -> Shape:
    width = files.integer(published, "hidden_size")
    heads = files.integer(published, "num_attention_heads")
    kv_heads = (
        heads
        if published.get("num_key_value_heads") is None
        else files.integer(published, "num_key_value_heads")
    )
    if heads % kv_heads:
        raise ModelIncompatible(
            f"config.json: num_key_value_heads {kv_heads} does not divide "
            f"num_attention_heads {heads}"
        )
    if published.get("head_dim") is not None:
        head_width = files.integer(published, "head_dim")
    elif published.get("model_type") == "qwen3":
        head_width = QWEN3_HEAD_WIDTH
    else:
        head_width = width // heads
    if head_width > WIDEST_HEAD:
        raise ModelIncompatible(
            f"config.json: head_dim {head_width} is beyond {WIDEST_HEAD}, "
            "the most that is supported"
        )
    if head_width % 2:
        raise ModelIncompatible(f"config.json: head_dim {head_width} is odd: nothing to rotate")
    rope_theta, scaling = rope_config.parsed(published)
    shape = Shape(
        width=width,
        layers=files.integer(published, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        inner=files.integer(published, "intermediate_size"),
        tied=published.get("tie_word_embeddings", False) is True,
        norm_eps=files.number(published, "rms_norm_eps", NORM_EPS),
        rope_theta=rope_theta,
    )
    return shape if scaling is None else ScaledShape(**asdict(shape), scaling=scaling)
