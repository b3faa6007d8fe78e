"""How much memory the training of a model takes at the very least, without building it.

For refusing, before anything is queued, what no worker could hold; so every figure is a lower
bound of what the engine takes, and importing this needs no torch. Tests hold the table to the
families themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Footprint:
    """What grows with what in a model of one size. All are numbers of values, not bytes."""

    parameters: int  # but for those below
    per_token_of_vocabulary: int  # parameters
    per_position: int  # parameters, where positions are learnt
    kept_per_token: int  # activations that the backward pass of one token needs


# Kept per token and layer: the inputs of both norms, queries, keys, values, what attention gives,
# and the feed-forward layer before and after its activation (two tensors of the inner width with
# GELU, three with SwiGLU); of an LSTM four gates, cell and output. Scores of attention are not
# kept by the kernels in use (Dao et al. 2022), nor is there a logit for each token at any moment.
FOOTPRINTS: Final[Mapping[str, Mapping[str, Footprint]]] = {
    "gpt2": {
        "tiny": Footprint(396_800, 128, 128, 3_584),
        "mini": Footprint(3_159_552, 256, 256, 14_336),
        "small": Footprint(85_056_000, 768, 768, 129_024),
        "medium": Footprint(302_311_424, 1_024, 1_024, 344_064),
        "large": Footprint(708_390_400, 1_280, 1_280, 645_120),
        "xl": Footprint(1_475_561_600, 1_600, 1_600, 1_075_200),
    },
    "llama": {
        "tiny": Footprint(369_280, 128, 0, 3_392),
        "mini": Footprint(2_951_424, 256, 0, 13_568),
        "small": Footprint(106_203_456, 576, 0, 218_880),
        "medium": Footprint(314_635_200, 960, 0, 389_120),
        "large": Footprint(968_976_384, 4_096, 0, 563_200),
        "xl": Footprint(1_610_713_088, 2_048, 0, 884_736),
    },
    "qwen": {
        "tiny": Footprint(492_416, 128, 0, 4_352),
        "mini": Footprint(3_934_976, 256, 0, 17_408),
        "small": Footprint(98_329_216, 640, 0, 174_080),
        "medium": Footprint(440_467_456, 1_024, 0, 487_424),
        "large": Footprint(1_409_410_048, 2_048, 0, 802_816),
        "xl": Footprint(3_633_511_936, 2_560, 0, 1_603_584),
    },
    "char_lstm": {
        "tiny": Footprint(921_600, 384, 0, 3_200),
        "small": Footprint(3_678_208, 768, 0, 6_400),
        "medium": Footprint(12_994_560, 1_152, 0, 14_208),
    },
}
_FLOAT32: Final = 4  # bytes: weights and gradients, whatever the precision of the arithmetic
_HALF: Final = 2
_MOMENTS: Final[Mapping[str, int]] = {"adamw": 2, "adam": 2, "sgd": 1, "muon": 1}
_MOMENTS_OF_EMBEDDINGS: Final[Mapping[str, int]] = {**_MOMENTS, "muon": 2}  # AdamW has them


def training_bytes(
    family: str,
    size: str,
    *,
    vocab_size: int,
    max_seq_len: int,
    batch_size: int,
    optimizer: str,
    half: bool,
) -> int:
    """Bytes of weights, gradients, the optimizer's moments and one batch's activations.

    ``half``: the arithmetic is in fp16 or bf16, in which activations are kept.
    """
    shape = FOOTPRINTS[family][size]
    embeddings = shape.per_token_of_vocabulary * vocab_size + shape.per_position * max_seq_len
    values = shape.parameters * (2 + _MOMENTS[optimizer])
    values += embeddings * (2 + _MOMENTS_OF_EMBEDDINGS[optimizer])
    kept = shape.kept_per_token * batch_size * max_seq_len
    return values * _FLOAT32 + kept * (_HALF if half else _FLOAT32)
