"""A recurrent language model: embedding, LSTM (Hochreiter and Schmidhuber 1997), linear head.

It reads on for ever in constant memory: its context has no bound. Shapes in names: B sequences,
T tokens, E embedding width, D hidden width, L layers, V vocabulary.
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
from backends.models.embedding import Embedding
from trainer_app.errors import FieldError, ModelIncompatible

DROPOUT: Final = 0.1  # between layers and on the outputs, while training


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMShape:
    """What the sizes differ in."""

    embedding: int
    hidden: int
    layers: int


SIZES: Final[Mapping[str, LSTMShape]] = {
    "tiny": LSTMShape(embedding=128, hidden=256, layers=2),
    "small": LSTMShape(embedding=256, hidden=512, layers=2),
    "medium": LSTMShape(embedding=384, hidden=768, layers=3),
}


class LSTMState:
    """The hidden and cell states of all layers after the tokens read so far."""

    def __init__(self, h_LBD: Tensor, c_LBD: Tensor) -> None:
        self.length = 0
        self.state = (h_LBD, c_LBD)

    def reorder(self, rows_B: Tensor) -> None:
        """Keep the given rows, in that order; a row may be repeated."""
        h_LBD, c_LBD = self.state
        self.state = (h_LBD[:, rows_B], c_LBD[:, rows_B])


class CharLSTM(CausalModel):
    """An LSTM over characters, or over the tokens of any other tokenizer."""

    gains_by_compiling = False  # cuDNN computes all steps and layers in one call

    def __init__(self, config: ModelConfig, shape: LSTMShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.embedding = Embedding(config.vocab_size, shape.embedding)
        self.lstm = nn.LSTM(
            shape.embedding,
            shape.hidden,
            num_layers=shape.layers,
            dropout=DROPOUT,
            batch_first=True,
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(shape.hidden, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights: torch's own choice, but for biases of 0.

        A bias of 1 at the forget gate (Jozefowicz et al. 2015) made the tiny size slower to learn
        source code by characters: 0.94 against 0.86 nats after 400 steps of 16 x 128.
        """
        bound = 1 / math.sqrt(self.shape.hidden)
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                parameter.normal_()
            elif "bias" in name:
                parameter.zero_()
            else:
                parameter.uniform_(-bound, bound)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        in_BTE = self.embedding(ids_BT)
        if ids_BT.is_cuda and torch.are_deterministic_algorithms_enabled():
            out_BTD = self._layer_by_layer(in_BTE)  # pragma: needs cuda
        else:
            out_BTD, _ = self.lstm(in_BTE)
        dropped: Tensor = self.dropout(out_BTD)
        return dropped

    def _layer_by_layer(self, x: Tensor) -> Tensor:  # pragma: needs cuda
        """The same with torch's dropout between layers, whose state can be kept and put back.

        That of cuDNN, which takes all layers in one call, cannot: a resumed run would differ.
        """
        zeros_1BD = x.new_zeros(1, len(x), self.shape.hidden)
        for layer in range(self.shape.layers):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(self.lstm, f"{name}_l{layer}") for name in names]
            x, _, _ = torch.lstm(
                x, (zeros_1BD, zeros_1BD), weights, True, 1, 0.0, self.training, False, True
            )
            if layer < self.shape.layers - 1:
                x = F.dropout(x, DROPOUT, self.training)
        return x

    def head_weight(self) -> Tensor:
        return self.head.weight

    def new_cache(self, batch: int, tokens: int) -> LSTMState:  # noqa: ARG002 - of any length
        zeros_LBD = self.head.weight.new_zeros(self.shape.layers, batch, self.shape.hidden)
        return LSTMState(zeros_LBD, zeros_LBD)

    def decode(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, LSTMState)
        out_BTD, cache.state = self.lstm(self.embedding(ids_BT), cache.state)
        cache.length += ids_BT.shape[1]
        return F.linear(out_BTD[:, -1], self.head.weight)


class CharLSTMFamily:
    """Builds LSTMs and maps them to and from files of the same form as the published families'."""

    sizes: Mapping[str, LSTMShape] = SIZES
    context_is_bounded = False
    loads_in_transformers = False

    def build(self, config: ModelConfig) -> CharLSTM:
        """A freshly initialised model; raises FieldError on an unknown size."""
        model = self._on_meta(config)
        model.to_empty(device="cpu")
        model.initialise()
        return model

    def parameter_count(self, config: ModelConfig) -> int:
        """Parameters of such a model."""
        return sum(parameter.numel() for parameter in self._on_meta(config).parameters())

    def embedding_parameters(self, model: CausalModel) -> Iterable[nn.Parameter]:
        """The token embedding; the head is a matrix of its own."""
        assert isinstance(model, CharLSTM)
        return model.embedding.parameters()

    def save(self, model: CausalModel, directory: Path) -> None:
        """Write the files that ``load`` reads. Raises OSError."""
        assert isinstance(model, CharLSTM)
        token_ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
        files.write_json(
            directory / files.CONFIG_FILE,
            {
                "model_type": "char_lstm",
                "vocab_size": model.config.vocab_size,
                "max_seq_len": model.config.max_seq_len,
                "embedding_size": model.shape.embedding,
                "hidden_size": model.shape.hidden,
                "num_layers": model.shape.layers,
                "dropout": DROPOUT,
                "dtype": "float32",
                **token_ids,
            },
        )
        files.write_json(directory / files.GENERATION_FILE, token_ids)
        files.write_weights(model.state_dict(), directory)

    def load(self, directory: Path) -> CharLSTM:
        """The model that ``save`` wrote; raises ModelIncompatible."""
        saved = files.read_config(directory)
        if saved.get("model_type") != "char_lstm":
            raise ModelIncompatible(f"config.json: model_type is {saved.get('model_type')!r}")
        shape = LSTMShape(
            embedding=files.integer(saved, "embedding_size"),
            hidden=files.integer(saved, "hidden_size"),
            layers=files.integer(saved, "num_layers"),
        )
        config = ModelConfig(
            family="char_lstm",
            size=files.size_name(SIZES, shape),
            vocab_size=files.integer(saved, "vocab_size"),
            max_seq_len=files.integer(saved, "max_seq_len"),
        )
        tensors = files.read_weights(directory)
        files.check_layers(shape.layers, tensors)
        with torch.device("meta"):
            model = CharLSTM(config, shape)
        files.assign(model, tensors)
        return model

    def _on_meta(self, config: ModelConfig) -> CharLSTM:
        if config.size not in self.sizes:
            raise FieldError("model_size", f"{config.size!r} is not one of {', '.join(SIZES)}")
        with torch.device("meta"):
            return CharLSTM(config, self.sizes[config.size])


FAMILY: Final = CharLSTMFamily()
