"""The model that a run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backends.contracts import ModelConfig
from backends.loading import load_model, model_family
from trainer_app.core.data import tokenizer_digest
from trainer_app.errors import ModelIncompatible

if TYPE_CHECKING:
    from backends.contracts import CausalModel
    from trainer_app.core.data import Data
    from trainer_app.core.spec import TrainSpec


def initial_model(spec: TrainSpec, data: Data, base: Path | None) -> CausalModel:
    """Fresh weights, a function of the seed alone, or those of a finished model.

    Seeds torch's generators first: whatever ran before in this process leaves no trace. Raises
    FieldError where there is no such family or size, and ModelIncompatible where the finished model
    is not of this architecture and vocabulary.
    """
    torch.manual_seed(spec.seed)
    family = model_family(spec.model_family)
    if base is None:
        model = family.build(
            ModelConfig(
                family=spec.model_family,
                size=spec.model_size,
                vocab_size=data.tokenizer.vocab_size,
                max_seq_len=spec.max_seq_len,
            )
        )
    else:
        model = load_model(base)
        _check_base(spec, data, model.config, base, bounded=family.context_is_bounded)
    if spec.freeze_embed:
        for parameter in family.embedding_parameters(model):
            parameter.requires_grad_(False)
    return model


def _check_base(
    spec: TrainSpec, data: Data, config: ModelConfig, base: Path, *, bounded: bool
) -> None:
    if (config.family, config.size) != (spec.model_family, spec.model_size):
        raise ModelIncompatible(
            f"the base model is {config.family} {config.size}, "
            f"not {spec.model_family} {spec.model_size}"
        )
    if tokenizer_digest(base) != data.tokenizer_sha256:
        raise ModelIncompatible("the base model was trained with another tokenizer")
    if bounded and spec.max_seq_len > config.max_seq_len:
        raise ModelIncompatible(
            f"max_seq_len {spec.max_seq_len} is beyond the base model's {config.max_seq_len}"
        )
