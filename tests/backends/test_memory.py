"""The table of memory is what the families are, and promises less than training takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backends.contracts import ModelConfig
from backends.loading import model_family
from backends.memory import FOOTPRINTS, training_bytes
from backends.registry import MODEL_FAMILIES, MODEL_SIZES


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_the_table_has_the_sizes_of_the_registry(family: str) -> None:
    assert tuple(FOOTPRINTS[family]) == MODEL_SIZES[family]


@pytest.mark.parametrize(
    ("family", "size"), [(family, size) for family, sizes in MODEL_SIZES.items() for size in sizes]
)
def test_parameters_are_counted_as_the_family_counts_them(family: str, size: str) -> None:
    for vocab_size, max_seq_len in ((300, 8), (50_000, 1_024)):
        config = ModelConfig(
            family=family, size=size, vocab_size=vocab_size, max_seq_len=max_seq_len
        )
        known = model_family(family).parameter_count(config)
        predicted = training_bytes(
            family,
            size,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            batch_size=0,
            optimizer="adamw",
            half=False,
        )
        assert predicted == known * 16  # weights, gradients and two moments of 4 bytes each


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_activations_are_no_more_and_not_far_less_than_what_autograd_keeps(family: str) -> None:
    batch, tokens = 4, 64
    config = ModelConfig(family=family, size="tiny", vocab_size=300, max_seq_len=tokens)
    model = model_family(family).build(config).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(torch.zeros(batch, tokens, dtype=torch.long))

    predicted = 4 * FOOTPRINTS[family]["tiny"].kept_per_token * batch * tokens
    assert 0.3 * sum(kept.values()) < predicted <= sum(kept.values())


def test_half_precision_halves_activations_alone_and_sgd_and_muon_keep_one_moment() -> None:
    def predict(batch_size: int, optimizer: str, *, half: bool) -> int:
        return training_bytes(
            "gpt2",
            "small",
            vocab_size=50_257,
            max_seq_len=1_024,
            batch_size=batch_size,
            optimizer=optimizer,
            half=half,
        )

    assert predict(0, "adamw", half=True) == 124_439_808 * 16  # published: 124M parameters
    assert predict(0, "sgd", half=True) == 124_439_808 * 12
    assert predict(0, "muon", half=True) == 85_056_000 * 12 + (124_439_808 - 85_056_000) * 16
    whole, halves = (
        predict(8, "adam", half=half) - predict(0, "adam", half=half) for half in (False, True)
    )
    assert whole == 2 * halves
