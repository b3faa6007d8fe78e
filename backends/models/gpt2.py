"""GPT-2 (Radford et al. 2019) without dropout, in HuggingFace's format on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from backends.contracts import ModelConfig
from backends.models import files
from backends.models.transformer import INIT_STD, Design, Shape, Transformer
from backends.models.transformer_family import TransformerFamily
from trainer_app.errors import ModelIncompatible

NORM_EPS: Final = 1e-5
# transformers' names of the one that is computed here
TANH_GELU: Final = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
HEAD: Final = "lm_head.weight"

DESIGN: Final = Design(
    norm="layer",
    positions="learned",
    feed_forward="gelu",
    qkv_bias=True,
    bias=True,
    qk_norm=False,
)


def gpt2_shape(
    *,
    width: int,
    layers: int,
    heads: int,
    inner: int | None = None,
    tied: bool = True,
    norm_eps: float = NORM_EPS,
) -> Shape:
    """The shape that follows from the three numbers in which GPT-2's sizes differ."""
    return Shape(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        inner=4 * width if inner is None else inner,
        tied=tied,
        norm_eps=norm_eps,
    )


SIZES: Final[Mapping[str, Shape]] = {
    "tiny": gpt2_shape(width=128, layers=2, heads=2),
    "mini": gpt2_shape(width=256, layers=4, heads=4),
    "small": gpt2_shape(width=768, layers=12, heads=12),
    "medium": gpt2_shape(width=1024, layers=24, heads=16),
    "large": gpt2_shape(width=1280, layers=36, heads=20),
    "xl": gpt2_shape(width=1600, layers=48, heads=25),
}

# Our names of a block's modules -> HuggingFace's.
_BLOCK_NAMES: Final[Mapping[str, str]] = {
    "ln_1": "ln_1",
    "c_attn": "attn.c_attn",
    "attn_proj": "attn.c_proj",
    "ln_2": "ln_2",
    "c_fc": "mlp.c_fc",
    "mlp_proj": "mlp.c_proj",
}
# transformers' Conv1D keeps (in, out) where nn.Linear keeps (out, in).
_TRANSPOSED: Final = ("c_attn.weight", "attn_proj.weight", "c_fc.weight", "mlp_proj.weight")


def _published_name(name: str) -> str:
    """``h.0.attn_proj.weight`` -> ``transformer.h.0.attn.c_proj.weight``."""
    if name == HEAD:
        return name
    if name.startswith("h."):
        prefix, layer, module, kind = name.split(".")
        name = f"{prefix}.{layer}.{_BLOCK_NAMES[module]}.{kind}"
    return f"transformer.{name}"


class GPT2Family(TransformerFamily):
    """Names and config of ``GPT2LMHeadModel``."""

    buffers = (".attn.bias", ".attn.masked_bias")  # masks

    def published_config(self, model: Transformer) -> dict[str, object]:
        shape = model.shape
        return {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.0,
            "dtype": "float32",
            "embd_pdrop": 0.0,
            "initializer_range": INIT_STD,
            "layer_norm_epsilon": shape.norm_eps,
            "model_type": "gpt2",
            "n_ctx": model.config.max_seq_len,
            "n_embd": shape.width,
            "n_head": shape.heads,
            "n_inner": None if shape.inner == 4 * shape.width else shape.inner,
            "n_layer": shape.layers,
            "n_positions": model.config.max_seq_len,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": shape.tied,
            "torch_dtype": "float32",  # the name that transformers before 5 reads
            "vocab_size": model.config.vocab_size,
        }

    def parsed_config(self, published: Mapping[str, object]) -> tuple[ModelConfig, Design, Shape]:
        width, layers, heads = (
            files.integer(published, name) for name in ("n_embd", "n_layer", "n_head")
        )
        files.require(
            published,
            {
                "model_type": ("gpt2",),
                "activation_function": (*TANH_GELU, None),
                "scale_attn_weights": (True, None),
                "scale_attn_by_inverse_layer_idx": (False, None),
                "add_cross_attention": (False, None),
                "tie_word_embeddings": (True, False, None),
            },
        )
        if width % heads:
            raise ModelIncompatible(f"config.json: n_head {heads} does not divide n_embd {width}")
        shape = gpt2_shape(
            width=width,
            layers=layers,
            heads=heads,
            inner=None if published.get("n_inner") is None else files.integer(published, "n_inner"),
            tied=published.get("tie_word_embeddings") is not False,
            norm_eps=files.number(published, "layer_norm_epsilon", NORM_EPS),
        )
        config = ModelConfig(
            family=self.name,
            size=files.size_name(self.sizes, shape),
            vocab_size=files.integer(published, "vocab_size"),
            max_seq_len=files.integer(published, "n_positions"),
        )
        return config, self.design, shape

    def published_tensors(self, model: Transformer) -> dict[str, Tensor]:
        return {
            _published_name(name): tensor.t() if name.endswith(_TRANSPOSED) else tensor
            for name, tensor in model.state_dict().items()
        }

    def own_tensors(self, published: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        ours = {_published_name(name): name for name in model.state_dict()}
        kept = {
            name if name.startswith(("transformer.", HEAD)) else f"transformer.{name}": tensor
            for name, tensor in files.taken_out(published)
        }
        if model.shape.tied:
            files.drop_tied_head(kept, HEAD, "transformer.wte.weight")
        own: dict[str, Tensor] = {}
        for published_name, tensor in files.taken_out(kept):
            name = ours.get(published_name, published_name)
            own[name] = tensor.t().contiguous() if name.endswith(_TRANSPOSED) else tensor
        return own


FAMILY: Final = GPT2Family("gpt2", DESIGN, SIZES)
