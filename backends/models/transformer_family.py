"""What the families of transformers share: building them, and HuggingFace's files.

A family fills in how its published config and the names of its tensors read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from backends.contracts import BOS_ID, EOS_ID, PAD_ID, CausalModel, ModelConfig
from backends.models import files
from backends.models.transformer import Design, Shape, Transformer
from trainer_app.errors import FieldError, ModelIncompatible

TOKEN_IDS: Final = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
LONGEST_CONTEXT: Final = 1 << 20  # tokens: what a config may ask for before there are weights


class TransformerFamily(ABC):
    """Builds models of one design and maps them to and from HuggingFace's files."""

    context_is_bounded = True
    loads_in_transformers = True
    buffers: tuple[str, ...] = ()  # endings of the names of what old files hold beside the weights

    def __init__(self, name: str, design: Design, sizes: Mapping[str, Shape]) -> None:
        self.name = name
        self.design = design
        self.sizes = sizes

    def build(self, config: ModelConfig) -> Transformer:
        """A freshly initialised model; raises FieldError on an unknown size."""
        model = self._on_meta(config)
        files.allocate(model)
        model.initialise()
        return model

    def parameter_count(self, config: ModelConfig) -> int:
        """Parameters of such a model, a tied head counted once."""
        return sum(parameter.numel() for parameter in self._on_meta(config).parameters())

    def embedding_parameters(self, model: CausalModel) -> Iterable[nn.Parameter]:
        """The token embedding, and with it the head where that is the same matrix."""
        assert isinstance(model, Transformer)
        return model.wte.parameters()

    def save(self, model: CausalModel, directory: Path) -> None:
        """Write what ``AutoModelForCausalLM.from_pretrained`` reads. Raises OSError."""
        assert isinstance(model, Transformer)
        config = self.published_config(model) | TOKEN_IDS
        files.write_json(directory / files.CONFIG_FILE, config)
        files.write_json(directory / files.GENERATION_FILE, TOKEN_IDS)
        files.write_weights(self.published_tensors(model), directory)

    def load(self, directory: Path) -> Transformer:
        """The model that ``save`` or transformers wrote; raises ModelIncompatible."""
        published = files.read_config(directory)
        config, design, shape = self.parsed_config(published)
        if config.max_seq_len > LONGEST_CONTEXT:
            raise ModelIncompatible(
                f"config.json: a context of {config.max_seq_len} tokens is beyond "
                f"{LONGEST_CONTEXT}, the most that is supported"
            )
        tensors = files.read_weights(directory, without=self.buffers)
        files.check_layers(shape.layers, tensors)
        with torch.device("meta"):
            model = Transformer(config, design, shape)
        self.adapt(model, published)
        files.assign(model, self.own_tensors(tensors, model))
        return model

    @abstractmethod
    def published_config(self, model: Transformer) -> dict[str, object]:
        """What config.json says of the model, but for the special tokens."""

    @abstractmethod
    def parsed_config(self, published: Mapping[str, object]) -> tuple[ModelConfig, Design, Shape]:
        """The model that a config.json describes.

        Raises ModelIncompatible, naming the field, for what is not computed here.
        """

    def adapt(self, model: Transformer, published: Mapping[str, object]) -> None:  # noqa: B027
        """Give a model without weights what neither design nor shape says; here nothing."""

    @abstractmethod
    def published_tensors(self, model: Transformer) -> dict[str, Tensor]:
        """The weights by their published names."""

    @abstractmethod
    def own_tensors(self, published: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """Published weights by this module's names; what does not belong keeps its name.

        They are taken out of ``published``: none but the one at hand is there twice.
        Raises ModelIncompatible.
        """

    def _on_meta(self, config: ModelConfig) -> Transformer:
        if config.size not in self.sizes:
            raise FieldError("model_size", f"{config.size!r} is not one of {', '.join(self.sizes)}")
        with torch.device("meta"):
            return Transformer(config, self.design, self.sizes[config.size])
