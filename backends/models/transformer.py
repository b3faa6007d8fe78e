"""The decoder that gpt2, llama and qwen are: a family says how by a ``Design``, a size by a
``Shape``.

It has no more than training and generation need. Shapes in names: B sequences, T tokens, D width,
H query heads, K heads of keys and values, C head width, F inner width, S tokens seen so far,
V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.contracts import Cache, CausalModel, ModelConfig
from backends.models.embedding import Embedding
from backends.models.kv_cache import KeyValueCache, causal_mask
from backends.models.rotary import rotate, rotation_tables

INIT_STD: Final = 0.02
_AS_IT_IS: Final = nullcontext()  # for all, at once and again
BF16_SINCE: Final = 8  # Ampere, by its compute capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What families differ in."""

    norm: Literal["layer", "rms"]
    positions: Literal["learned", "rotary"]
    feed_forward: Literal["gelu", "swiglu"]
    qkv_bias: bool  # of queries, keys and values
    bias: bool  # of the other products
    qk_norm: bool  # queries and keys are normalised head by head


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What sizes differ in."""

    width: int
    layers: int
    heads: int
    kv_heads: int  # each serves heads / kv_heads heads of queries
    head_width: int
    inner: int  # width of the feed-forward layer
    tied: bool  # the head is the token embedding
    norm_eps: float
    rope_theta: float = 10_000.0  # of rotary positions


class StreamNorm(nn.Module):
    """A norm of the residual stream."""

    def added(
        self,
        x: Tensor,
        y: Tensor,
        bias_D: Tensor | None,  # noqa: ARG002 - for norms that make its gradient
    ) -> tuple[Tensor, Tensor]:
        """The stream x with a layer's y added, and a normalised copy of that.

        ``bias_D``: of the product that y is, with the bias in it. Behind the last layer the first
        may be anything: nothing reads it.
        """
        # in bf16 where x is: of bf16 and fp16 torch would make float32
        x = x + (y.to(x.dtype) if x.dtype == torch.bfloat16 else y)
        return x, self(x)


class RMSNorm(StreamNorm):
    """x / sqrt(mean(x^2) + eps), scaled (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        with as_it_comes(x):
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm, StreamNorm):
    """torch's own, in the precision of what it normalises."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with as_it_comes(x):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def as_it_comes(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: it would write what a norm returns as float32, twice the bytes.

    The kernels compute in float32 whatever they read. Where it is off anyway nothing is made: on a
    CPU that would take as long as the norm of a token.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


def _norm(design: Design, width: int, eps: float) -> RMSNorm | LayerNorm:
    return RMSNorm(width, eps) if design.norm == "rms" else LayerNorm(width, eps=eps)


class Block(nn.Module):
    """Attention and feed-forward layer, each on a normalised copy of the residual stream."""

    def __init__(self, design: Design, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.width, shape.inner
        self.head_width = shape.head_width
        query_width, key_width = (n * shape.head_width for n in (shape.heads, shape.kv_heads))
        self.qkv_widths = (query_width, key_width, key_width)
        self.gated = design.feed_forward == "swiglu"
        self.qk_norm = design.qk_norm
        self.ln_1 = _norm(design, width, shape.norm_eps)
        # queries, keys and values in one product
        self.c_attn = nn.Linear(width, sum(self.qkv_widths), bias=design.qkv_bias)
        if self.qk_norm:
            self.q_norm = RMSNorm(shape.head_width, shape.norm_eps)
            self.k_norm = RMSNorm(shape.head_width, shape.norm_eps)
        self.attn_proj = nn.Linear(query_width, width, bias=design.bias)
        self.ln_2 = _norm(design, width, shape.norm_eps)
        # swiglu: the gate above what it gates, in one product
        self.c_fc = nn.Linear(width, 2 * inner if self.gated else inner, bias=design.bias)
        self.mlp_proj = nn.Linear(inner, width, bias=design.bias)
        # of the products that are several in one, by name
        self.rows = {"c_attn": self.qkv_widths} | ({"c_fc": (inner, inner)} if self.gated else {})

    def attention(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Tensor:
        """What is added to the residual stream, of a normalised copy of it."""
        q_BHTC, k_BKTC, v_BKTC = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for part in self.c_attn(x_BTD).split(self.qkv_widths, dim=-1)
        )
        if self.qk_norm:
            q_BHTC, k_BKTC = self.q_norm(q_BHTC), self.k_norm(k_BKTC)
        if rotation is not None:
            # turned in float32, attended to in the precision of the values
            q_BHTC, k_BKTC = (rotate(x, *rotation).to(v_BKTC.dtype) for x in (q_BHTC, k_BKTC))
        if cache is None:
            y_BHTC = _attend(q_BHTC, k_BKTC, v_BKTC)
        else:
            y_BHTC = _attend_with_cache(q_BHTC, k_BKTC, v_BKTC, cache, layer)
        y_BTD: Tensor = self.attn_proj(y_BHTC.transpose(1, 2).flatten(2))
        return y_BTD

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """What is added to the residual stream after attention, of a normalised copy of it."""
        h_BTF = self.c_fc(x_BTD)
        if self.gated:
            gate_BTF, h_BTF = h_BTF.chunk(2, dim=-1)
            h_BTF = F.silu(gate_BTF) * h_BTF  # SwiGLU (Shazeer 2020)
        else:
            h_BTF = F.gelu(h_BTF, approximate="tanh")
        y_BTD: Tensor = self.mlp_proj(h_BTF)
        return y_BTD


def _stream_dtype(x: Tensor, *, training: bool) -> torch.dtype:
    """Of the residual stream that begins with x: bf16 where products are in half precision.

    That is half the bytes to move. Never fp16, which ends at 65,504: single channels of published
    models come near it. Beside products in fp16 it is bf16 while training alone, on GPUs that
    compute in it.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x.dtype
    if torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.bfloat16
    native = torch.cuda.get_device_properties(x.device).major >= BF16_SINCE  # pragma: needs cuda
    return torch.bfloat16 if training and native else x.dtype  # pragma: needs cuda


def _attend(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_TS: Tensor | None = None
) -> Tensor:
    """Each query attends to what stands before it, or to what the mask lets it."""
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    if groups > 1:
        # Repeated, for not every fused kernel takes grouped keys: none does in float32 on CUDA.
        k_BKSC, v_BKSC = (x.repeat_interleave(groups, dim=1) for x in (k_BKSC, v_BKSC))
    return F.scaled_dot_product_attention(
        q_BHTC, k_BKSC, v_BKSC, attn_mask=mask_TS, is_causal=mask_TS is None
    )


def _attend_with_cache(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, cache: KeyValueCache, layer: int
) -> Tensor:
    new, seen = q_BHTC.shape[2], cache.length
    k_BKSC, v_BKSC = cache.extend(layer, k_BKTC, v_BKTC)
    if new == 1:
        # One query a head, with nothing after it: those that share keys go as queries of one head.
        q_BKGC = q_BHTC.reshape(len(q_BHTC), k_BKSC.shape[1], -1, q_BHTC.shape[-1])
        return F.scaled_dot_product_attention(q_BKGC, k_BKSC, v_BKSC).reshape(q_BHTC.shape)
    mask_TS = causal_mask(new, seen, q_BHTC.device) if seen else None
    return _attend(q_BHTC, k_BKSC, v_BKSC, mask_TS)


class Transformer(CausalModel):
    """Token embedding, blocks, a last norm, head."""

    cos_table: Tensor  # with rotary positions: (max_seq_len, C/2)
    sin_table: Tensor

    def __init__(self, config: ModelConfig, design: Design, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.design = design
        self.shape = shape
        self.attention_width = shape.layers * shape.heads * shape.head_width
        self.wte = Embedding(config.vocab_size, shape.width)
        if design.positions == "learned":
            self.wpe = Embedding(config.max_seq_len, shape.width)
        else:
            # on the CPU even while the parameters have no memory yet: nothing fills buffers later
            cos_SC, sin_SC = rotation_tables(
                config.max_seq_len, shape.head_width, shape.rope_theta, device="cpu"
            )
            self.register_buffer("cos_table", cos_SC, persistent=False)
            self.register_buffer("sin_table", sin_SC, persistent=False)
        self.h = nn.ModuleList(Block(design, shape) for _ in range(shape.layers))
        self.ln_f = _norm(design, shape.width, shape.norm_eps)
        if not shape.tied:
            self.lm_head = nn.Linear(shape.width, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights: normal of deviation 0.02, biases 0, norms 1.

        The projections onto the residual stream are scaled by 1/sqrt(2 x layers), so that its
        variance does not grow with depth (GPT-2's paper, section 2.3).
        """
        residual_std = INIT_STD / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, residual_std if "_proj." in name else INIT_STD)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self._hidden(ids_BT, None)

    def head_weight(self) -> Tensor:
        return self.wte.weight if self.shape.tied else self.lm_head.weight

    def packed_rows(self) -> dict[nn.Parameter, tuple[int, ...]]:
        return {
            block.get_parameter(f"{name}.weight"): rows
            for block in self.blocks()
            for name, rows in block.rows.items()
        }

    def new_cache(self, batch: int, tokens: int) -> KeyValueCache:
        return KeyValueCache(
            layers=self.shape.layers,
            batch=batch,
            heads=self.shape.kv_heads,
            max_len=min(tokens, self.config.max_seq_len),
            head_width=self.shape.head_width,
            like=self.wte.weight,
        )

    def decode(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, KeyValueCache)
        last_BD = self._hidden(ids_BT, cache)[:, -1]
        cache.advance(ids_BT.shape[1])
        return F.linear(last_BD, self.head_weight())

    def _hidden(self, ids_BT: Tensor, cache: KeyValueCache | None) -> Tensor:
        start = 0 if cache is None else cache.length
        at = slice(start, start + ids_BT.shape[1])
        x_BTD = self.wte(ids_BT)
        rotation = None
        if self.design.positions == "learned":
            x_BTD = x_BTD + self.wpe.weight[at]
        else:
            rotation = (self.cos_table[at], self.sin_table[at])
        x_BTD = x_BTD.to(_stream_dtype(x_BTD, training=self.training))
        blocks = self.blocks()
        normed_BTD: Tensor = blocks[0].ln_1(x_BTD)
        for layer, (block, after) in enumerate(zip(blocks, self.norms_after(), strict=True)):
            y_BTD = block.attention(normed_BTD, rotation, cache, layer)
            x_BTD, normed_BTD = block.ln_2.added(x_BTD, y_BTD, block.attn_proj.bias)
            y_BTD = block.feed_forward(normed_BTD)
            x_BTD, normed_BTD = after.added(x_BTD, y_BTD, block.mlp_proj.bias)
        return normed_BTD

    def blocks(self) -> list[Block]:
        found = [block for block in self.h if isinstance(block, Block)]
        assert len(found) == len(self.h)
        return found

    def norms_after(self) -> list[StreamNorm]:
        """The norm behind each block: the next one's first, or the last of all."""
        return [*(block.ln_1 for block in self.blocks()[1:]), self.ln_f]
