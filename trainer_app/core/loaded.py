"""A finished model in memory, with its tokenizer, ready to be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backends.contracts import CausalModel, Tokenizer
from backends.loading import load_model as load_weights
from backends.loading import load_tokenizer, model_family
from trainer_app.core.device import out_of_memory_named
from trainer_app.errors import ModelIncompatible

if TYPE_CHECKING:
    from trainer_app.core.spec import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model, the tokenizer that it was trained with and the device that it is on."""

    model: CausalModel
    tokenizer: Tokenizer
    device: str  # "cpu", "cuda"

    @property
    def family(self) -> str:
        return self.model.config.family

    @property
    def context(self) -> int | None:
        """How many tokens the model can look back at; None: all, as a recurrent model does."""
        bounded = model_family(self.family).context_is_bounded
        return self.model.config.max_seq_len if bounded else None

    def check_trained_as(self, spec: TrainSpec) -> None:
        """Raise ModelIncompatible where config.json is not that of the run of ``spec``.

        Of the heads, the context and the angles of rotary positions nothing shows in the weights:
        other ones load, and give other numbers. A size's name stands for all of its shape.
        """
        config = self.model.config
        if (config.family, config.size) != (spec.model_family, spec.model_size):
            raise ModelIncompatible(
                f"config.json is of {config.family} {config.size}, but the run trained "
                f"{spec.model_family} {spec.model_size}"
            )
        if spec.pretrained_run_id is None:
            fits = config.max_seq_len == spec.max_seq_len
        else:  # the context is the base model's, of which the run may have used a part
            fits = self.context is None or config.max_seq_len >= spec.max_seq_len
        if not fits:
            raise ModelIncompatible(
                f"config.json has a context of {config.max_seq_len} tokens, but the run trained "
                f"with max_seq_len {spec.max_seq_len}"
            )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Without dropout and gradients for a while; then as it was before."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


def load_model(directory: Path, *, device: str) -> LoadedModel:
    """The model and the tokenizer in an artifact's folder, for use, not for training.

    Raises ModelIncompatible where a file is missing or damaged, or the two do not fit together, and
    OutOfMemory.
    """
    with out_of_memory_named(f"the model {directory.name}", device):
        return _loaded(directory, device)


def _loaded(directory: Path, device: str) -> LoadedModel:
    model = load_weights(directory)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ModelIncompatible(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    model.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedModel(model=model, tokenizer=tokenizer, device=device)
