"""GPT-2 (Radford et al. 2019), lean, in HuggingFace's format on disk.

The arithmetic is that of transformers' ``GPT2LMHeadModel`` without dropout; the module has no
more than training and generation need. Shapes in names: B sequences, T tokens, D width,
H heads, C head width, S tokens seen so far, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.contracts import BOS_ID, EOS_ID, PAD_ID, Cache, CausalModel, ModelConfig
from backends.models import files
from backends.models.kv_cache import KeyValueCache, causal_mask
from trainer_app.errors import FieldError, ModelIncompatible

NORM_EPS: Final = 1e-5
INIT_STD: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Shape:
    """What the sizes differ in; the feed-forward layer is four times as wide as the model."""

    width: int
    layers: int
    heads: int


SIZES: Final[Mapping[str, GPT2Shape]] = {
    "tiny": GPT2Shape(width=128, layers=2, heads=2),
    "mini": GPT2Shape(width=256, layers=4, heads=4),
    "small": GPT2Shape(width=768, layers=12, heads=12),
    "medium": GPT2Shape(width=1024, layers=24, heads=16),
    "large": GPT2Shape(width=1280, layers=36, heads=20),
    "xl": GPT2Shape(width=1600, layers=48, heads=25),
}


class Block(nn.Module):
    """Attention and feed-forward layer, each on a normalised copy of the residual stream."""

    def __init__(self, shape: GPT2Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.c_attn = nn.Linear(width, 3 * width)  # queries, keys and values in one product
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None, layer: int) -> Tensor:
        q_BHTC, k_BHTC, v_BHTC = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x_BTD)).chunk(3, dim=-1)
        )
        if cache is None:
            y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        else:
            y_BHTC = _attend_with_cache(q_BHTC, k_BHTC, v_BHTC, cache, layer)
        x_BTD = x_BTD + self.attn_proj(y_BHTC.transpose(1, 2).flatten(2))
        h_BTF = F.gelu(self.c_fc(self.ln_2(x_BTD)), approximate="tanh")
        y_BTD: Tensor = self.mlp_proj(h_BTF)
        return x_BTD + y_BTD


def _attend_with_cache(
    q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, cache: KeyValueCache, layer: int
) -> Tensor:
    new, seen = q_BHTC.shape[2], cache.length
    k_BHSC, v_BHSC = cache.extend(layer, k_BHTC, v_BHTC)
    if seen == 0:
        return F.scaled_dot_product_attention(q_BHTC, k_BHSC, v_BHSC, is_causal=True)
    mask = causal_mask(new, seen, q_BHTC.device) if new > 1 else None
    return F.scaled_dot_product_attention(q_BHTC, k_BHSC, v_BHSC, attn_mask=mask)


class GPT2(CausalModel):
    """GPT-2; the head is the token embedding."""

    def __init__(self, config: ModelConfig, shape: GPT2Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.wte = nn.Embedding(config.vocab_size, shape.width)
        self.wpe = nn.Embedding(config.max_seq_len, shape.width)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width, eps=NORM_EPS)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights: normal of deviation 0.02, biases 0, norms 1.

        The projections onto the residual stream are scaled by 1/sqrt(2 x layers), so that its
        variance does not grow with depth (section 2.3 of the paper).
        """
        residual_std = INIT_STD / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name or name.startswith("ln_"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, residual_std if "_proj." in name else INIT_STD)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self._hidden(ids_BT, None)

    def head_weight(self) -> Tensor:
        return self.wte.weight

    def new_cache(self, batch: int, tokens: int) -> KeyValueCache:
        return KeyValueCache(
            layers=self.shape.layers,
            batch=batch,
            heads=self.shape.heads,
            max_len=min(tokens, self.config.max_seq_len),
            head_width=self.shape.width // self.shape.heads,
            like=self.wte.weight,
        )

    def decode(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, KeyValueCache)
        last_BD = self._hidden(ids_BT, cache)[:, -1]
        cache.advance(ids_BT.shape[1])
        return F.linear(last_BD, self.wte.weight)

    def _hidden(self, ids_BT: Tensor, cache: KeyValueCache | None) -> Tensor:
        start = 0 if cache is None else cache.length
        x_BTD = self.wte(ids_BT) + self.wpe.weight[start : start + ids_BT.shape[1]]
        for layer, block in enumerate(self.h):
            x_BTD = block(x_BTD, cache, layer)
        normed: Tensor = self.ln_f(x_BTD)
        return normed


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
    if name.startswith("h."):
        prefix, layer, module, kind = name.split(".")
        name = f"{prefix}.{layer}.{_BLOCK_NAMES[module]}.{kind}"
    return f"transformer.{name}"


class GPT2Family:
    """Builds GPT-2 models and maps them to and from HuggingFace's files."""

    sizes: Mapping[str, GPT2Shape] = SIZES
    context_is_bounded = True
    loads_in_transformers = True

    def build(self, config: ModelConfig) -> GPT2:
        """A freshly initialised model; raises FieldError on an unknown size."""
        model = self._on_meta(config)
        model.to_empty(device="cpu")
        model.initialise()
        return model

    def parameter_count(self, config: ModelConfig) -> int:
        """Parameters of such a model; the tied head is the embedding."""
        return sum(parameter.numel() for parameter in self._on_meta(config).parameters())

    def embedding_parameters(self, model: CausalModel) -> Iterable[nn.Parameter]:
        """The token embedding, and with it the head, which is the same matrix."""
        assert isinstance(model, GPT2)
        return model.wte.parameters()

    def save(self, model: CausalModel, directory: Path) -> None:
        """Write what ``AutoModelForCausalLM.from_pretrained`` reads. Raises OSError."""
        assert isinstance(model, GPT2)
        files.write_json(directory / files.CONFIG_FILE, _published_config(model))
        token_ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
        files.write_json(directory / files.GENERATION_FILE, token_ids)
        files.write_weights(
            {
                _published_name(name): tensor.t() if name.endswith(_TRANSPOSED) else tensor
                for name, tensor in model.state_dict().items()
            },
            directory,
        )

    def load(self, directory: Path) -> GPT2:
        """The model that ``save`` or transformers wrote; raises ModelIncompatible."""
        published = files.read_config(directory)
        config, shape = _parsed_config(published)
        with torch.device("meta"):
            model = GPT2(config, shape)
        tensors = _without_extras(files.read_weights(directory))
        ours = {_published_name(name): name for name in model.state_dict()}
        renamed = {ours.get(name, name): tensor for name, tensor in tensors.items()}
        files.assign(
            model,
            {
                name: tensor.t().contiguous() if name.endswith(_TRANSPOSED) else tensor
                for name, tensor in renamed.items()
            },
        )
        return model

    def _on_meta(self, config: ModelConfig) -> GPT2:
        if config.size not in self.sizes:
            raise FieldError("model_size", f"{config.size!r} is not one of {', '.join(SIZES)}")
        with torch.device("meta"):
            return GPT2(config, self.sizes[config.size])


def _published_config(model: GPT2) -> dict[str, object]:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "float32",
        "embd_pdrop": 0.0,
        "eos_token_id": EOS_ID,
        "initializer_range": INIT_STD,
        "layer_norm_epsilon": NORM_EPS,
        "model_type": "gpt2",
        "n_ctx": model.config.max_seq_len,
        "n_embd": model.shape.width,
        "n_head": model.shape.heads,
        "n_inner": None,
        "n_layer": model.shape.layers,
        "n_positions": model.config.max_seq_len,
        "pad_token_id": PAD_ID,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",  # the name that transformers before 5 reads
        "vocab_size": model.config.vocab_size,
    }


def _parsed_config(published: Mapping[str, object]) -> tuple[ModelConfig, GPT2Shape]:
    """Size and shape; raises ModelIncompatible for what this module does not compute."""
    shape = GPT2Shape(
        width=files.integer(published, "n_embd"),
        layers=files.integer(published, "n_layer"),
        heads=files.integer(published, "n_head"),
    )
    computed: dict[str, tuple[object, ...]] = {  # the values that mean what is computed here
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
        "layer_norm_epsilon": (NORM_EPS, None),
        "n_inner": (None, 4 * shape.width),
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
        "tie_word_embeddings": (True, None),
    }
    for name, values in computed.items():
        if published.get(name) not in values:
            raise ModelIncompatible(
                f"config.json: {name} is {published.get(name)!r}; supported: {values[0]!r}"
            )
    if shape.width % shape.heads:
        raise ModelIncompatible(
            f"config.json: n_head {shape.heads} does not divide n_embd {shape.width}"
        )
    config = ModelConfig(
        family="gpt2",
        size=files.size_name(SIZES, shape),
        vocab_size=files.integer(published, "vocab_size"),
        max_seq_len=files.integer(published, "n_positions"),
    )
    return config, shape


def _without_extras(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """HuggingFace's names with their prefix; without the mask buffers of old files and the head,
    which is the embedding.
    """
    kept = {
        name if name.startswith("transformer.") else f"transformer.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    head = kept.pop("transformer.lm_head.weight", None)
    if head is not None and not torch.equal(head, kept.get("transformer.wte.weight", head)):
        raise ModelIncompatible("model.safetensors: lm_head.weight differs from the embedding")
    return kept


FAMILY: Final = GPT2Family()
