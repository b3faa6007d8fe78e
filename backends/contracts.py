"""The two things that a backend is: a model family and a tokenizer kind.

Shapes in names: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# The ids that every tokenizer gives to the special tokens, in this order from 0.
SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All that it takes to build a model of a family, beside its weights."""

    family: str
    size: str
    vocab_size: int  # true size, without padding
    max_seq_len: int  # tokens of context


class Cache(Protocol):
    """What a model remembers of the tokens that it has read while generating."""

    length: int  # tokens read so far

    def reorder(self, rows_B: Tensor) -> None:
        """Keep the given rows, in that order (to repeat a prompt or drop finished rows)."""
        ...


class CausalModel(nn.Module):
    """A model that predicts each next token; the loss and the loop are shared by all.

    ``head_weight`` (V, D) maps what ``hidden`` returns to logits, so that the loss may avoid
    ever holding all logits at once.
    """

    config: ModelConfig
    attention_width = 0  # layers x heads x head width; 0: no attention
    gains_by_compiling = True  # False: what ``hidden`` calls is fused already

    @abstractmethod
    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The final hidden states (B, T, D) of whole sequences, T <= max_seq_len."""

    @abstractmethod
    def head_weight(self) -> Tensor:
        """The output projection (V, D)."""

    def packed_rows(self) -> dict[nn.Parameter, tuple[int, ...]]:
        """The weights that Muon takes for several maps, one above the other: the rows of each map.

        An LSTM's four gates, which are that, too, it takes for one: what is better there nobody has
        measured.
        """
        return {}

    @abstractmethod
    def new_cache(self, batch: int, tokens: int) -> Cache:
        """An empty cache on the model's device: ``batch`` sequences of up to ``tokens`` tokens,
        of up to ``max_seq_len`` where the context is bounded.
        """

    @abstractmethod
    def decode(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) after the last of the given tokens, which follow those in the cache."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        return nn.functional.linear(self.hidden(ids_BT), self.head_weight())


class ModelFamily(Protocol):
    """Builds the models of one architecture and maps them to and from files."""

    sizes: Mapping[str, object]
    context_is_bounded: bool  # False: a recurrent model reads on for ever
    loads_in_transformers: bool  # by AutoModelForCausalLM, as it is

    def build(self, config: ModelConfig) -> CausalModel:
        """A freshly initialised model; raises FieldError on an impossible config."""
        ...

    def save(self, model: CausalModel, directory: Path) -> None:
        """Write config.json, generation_config.json and model.safetensors."""
        ...

    def load(self, directory: Path) -> CausalModel:
        """The model that ``save``, or transformers for the published families, wrote."""
        ...

    def embedding_parameters(self, model: CausalModel) -> Iterable[nn.Parameter]:
        """The token embedding: what ``freeze_embed`` freezes."""
        ...

    def parameter_count(self, config: ModelConfig) -> int:
        """Parameters of such a model, a tied head counted once."""
        ...


Counts: TypeAlias = "Callable[[], NDArray[np.uint32]]"  # of the ids of each piece


class BlockEncoder(Protocol):
    """Turns much text into ids, block by block; ``encode`` is for one thread at a time."""

    name: str  # of the library that does it

    def encode(
        self, data: bytes, sizes: NDArray[np.uint32], apart: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.uint32], Counts]:
        """The ids of consecutive pieces of text, and how many of them each piece has.

        ``data`` is the UTF-8 of at least one piece, ``sizes`` their bytes, none 0. Where a piece
        ends that is ``apart`` the text is cut; where another ends, pre-tokenization has a border
        anyway. They are counted when asked for, by any thread, while this one may encode the next
        block. Both raise EncodersDisagree, see backends.tokenizers.blocks.
        """
        ...


class Tokenizer(Protocol):
    """Text to ids and back; the ids of the special tokens are those of SPECIAL_TOKENS."""

    kind: str
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text; the names of special tokens in it are ordinary text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in parallel where the kind can."""
        ...

    def block_encoder(self) -> BlockEncoder:
        """The fastest way that this machine has to the same ids for much text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as a person would read it."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files that ``AutoTokenizer.from_pretrained`` and ``load`` read."""
        ...


class TokenizerKind(Protocol):
    """Trains and loads the tokenizers of one kind."""

    min_vocab_size: int

    def train(self, texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> Tokenizer:
        """Train on a stream of texts; raises TokenizerTrainFailed where they do not suffice."""
        ...

    def load(self, directory: Path) -> Tokenizer:
        """The tokenizer that ``save`` wrote."""
        ...
