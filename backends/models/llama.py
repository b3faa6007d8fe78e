"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped keys, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backends.models.llama_format import LlamaFormatFamily
from backends.models.transformer import Design, Shape

DESIGN: Final = Design(
    norm="rms",
    positions="rotary",
    feed_forward="swiglu",
    qkv_bias=False,
    bias=False,
    qk_norm=False,
)

# tiny and mini are as wide and deep as GPT-2's; the others are published models of this family.
SIZES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(
        width=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=32,
        inner=352,
        tied=True,
        norm_eps=1e-5,
    ),
    "mini": Shape(
        width=256,
        layers=4,
        heads=4,
        kv_heads=2,
        head_width=64,
        inner=704,
        tied=True,
        norm_eps=1e-5,
    ),
    "small": Shape(  # SmolLM2-135M
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        inner=1536,
        tied=True,
        norm_eps=1e-5,
        rope_theta=100_000.0,
    ),
    "medium": Shape(  # SmolLM2-360M
        width=960,
        layers=32,
        heads=15,
        kv_heads=5,
        head_width=64,
        inner=2560,
        tied=True,
        norm_eps=1e-5,
        rope_theta=100_000.0,
    ),
    "large": Shape(  # TinyLlama-1.1B
        width=2048,
        layers=22,
        heads=32,
        kv_heads=4,
        head_width=64,
        inner=5632,
        tied=False,
        norm_eps=1e-5,
    ),
    "xl": Shape(  # SmolLM2-1.7B
        width=2048,
        layers=24,
        heads=32,
        kv_heads=32,
        head_width=64,
        inner=8192,
        tied=True,
        norm_eps=1e-5,
        rope_theta=130_000.0,
    ),
}

FAMILY: Final = LlamaFormatFamily(
    "llama",
    designs={"llama": DESIGN},
    classes={"llama": "LlamaForCausalLM"},
    biases={"llama": ("attention_bias", "mlp_bias")},
    sizes=SIZES,
)
