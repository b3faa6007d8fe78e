"""What can be swapped: names and the modules behind them.

One line adds a model family or a tokenizer kind; the API's choices, the OpenAPI document, the
command line and the parametrised tests all read these tables. Data only: importing this module
imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# family -> module with a ``FAMILY`` that satisfies backends.contracts.ModelFamily
MODEL_FAMILIES: Final[Mapping[str, str]] = {
    "gpt2": "backends.models.gpt2",
    "llama": "backends.models.llama",
    "qwen": "backends.models.qwen",
    "char_lstm": "backends.models.char_lstm",
}

# family -> its sizes, smallest first; the module's own shapes must have the same names
MODEL_SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "gpt2": ("tiny", "mini", "small", "medium", "large", "xl"),
    "llama": ("tiny", "mini", "small", "medium", "large", "xl"),
    "qwen": ("tiny", "mini", "small", "medium", "large", "xl"),
    "char_lstm": ("tiny", "small", "medium"),
}

# model_type of a config.json -> the family that reads it
MODEL_TYPES: Final[Mapping[str, str]] = {
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen3": "qwen",
    "qwen2": "qwen",
    "char_lstm": "char_lstm",
}

# families whose models read on for ever: the others have a context, the max_seq_len of training
UNBOUNDED_FAMILIES: Final = frozenset({"char_lstm"})

# kind -> module with a ``KIND`` that satisfies backends.contracts.TokenizerKind
TOKENIZER_KINDS: Final[Mapping[str, str]] = {
    "bpe": "backends.tokenizers.bpe",
    "sentencepiece": "backends.tokenizers.sentencepiece_bpe",
    "char": "backends.tokenizers.char",
}

# family -> the one kind that it takes, and trains itself from the corpus where none is given
OWN_TOKENIZERS: Final[Mapping[str, str]] = {"char_lstm": "char"}

# kind -> the smallest vocabulary that can be asked for
TOKENIZER_MIN_VOCAB: Final[Mapping[str, int]] = {"bpe": 260, "sentencepiece": 100, "char": 100}

# kind -> the fewest tokens that such a tokenizer can have: the special ones and its alphabet
MIN_VOCAB_SIZES: Final[Mapping[str, int]] = {"bpe": 260, "sentencepiece": 7, "char": 5}
