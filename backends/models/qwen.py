"""Qwen3 (Yang et al. 2025): llama with normalised queries and keys, and heads of any width.

Folders of Qwen2 load as well: it has biases on queries, keys and values instead of the norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from backends.models import llama
from backends.models.llama_format import LlamaFormatFamily
from backends.models.transformer import Design, Shape

QWEN3: Final[Design] = replace(llama.DESIGN, qk_norm=True)
QWEN2: Final[Design] = replace(llama.DESIGN, qkv_bias=True)


def qwen3_shape(
    *, width: int, layers: int, heads: int, kv_heads: int, head_width: int, inner: int
) -> Shape:
    """A shape with what all sizes of Qwen3 up to 4B have in common."""
    return Shape(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        inner=inner,
        tied=True,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
    )


# No published model is as small as the first three: they keep the proportions of Qwen3-0.6B,
# whose heads together are twice as wide as the model.
SIZES: Final[Mapping[str, Shape]] = {
    "tiny": qwen3_shape(width=128, layers=2, heads=4, kv_heads=2, head_width=64, inner=384),
    "mini": qwen3_shape(width=256, layers=4, heads=8, kv_heads=4, head_width=64, inner=768),
    "small": qwen3_shape(width=640, layers=16, heads=10, kv_heads=5, head_width=128, inner=1920),
    # Qwen3-0.6B, 1.7B and 4B
    "medium": qwen3_shape(width=1024, layers=28, heads=16, kv_heads=8, head_width=128, inner=3072),
    "large": qwen3_shape(width=2048, layers=28, heads=16, kv_heads=8, head_width=128, inner=6144),
    "xl": qwen3_shape(width=2560, layers=36, heads=32, kv_heads=8, head_width=128, inner=9728),
}

FAMILY: Final = LlamaFormatFamily(
    "qwen",
    designs={"qwen3": QWEN3, "qwen2": QWEN2},
    classes={"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"},
    biases={"qwen3": ("attention_bias",), "qwen2": ()},
    sizes=SIZES,
)
