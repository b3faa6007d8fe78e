"""A finished model, read from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.contracts import ModelConfig
from backends.loading import model_family, tokenizer_kind
from trainer_app.core.loaded import load_model
from trainer_app.errors import ModelIncompatible

CORPUS = "The quick brown fox jumps over the lazy dog.\n"


def artifact(folder: Path, family: str, *, vocab_size: int | None = None) -> Path:
    tokenizer = tokenizer_kind("char").train([CORPUS], vocab_size=100, min_frequency=1)
    config = ModelConfig(
        family=family,
        size="tiny",
        vocab_size=vocab_size or tokenizer.vocab_size,
        max_seq_len=16,
    )
    model_family(family).save(model_family(family).build(config), folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize(("family", "context"), [("gpt2", 16), ("char_lstm", None)])
def test_a_model_is_loaded_with_its_tokenizer_for_use(
    family: str, context: int | None, tmp_path: Path
) -> None:
    loaded = load_model(artifact(tmp_path, family), device="cpu")
    assert (loaded.family, loaded.context, loaded.device) == (family, context, "cpu")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(CORPUS)) == CORPUS
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_tokenizer_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match="the tokenizer has 34 tokens, the model 99"):
        load_model(artifact(tmp_path, "gpt2", vocab_size=99), device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    (artifact(tmp_path, "gpt2") / name).unlink()
    with pytest.raises(ModelIncompatible, match=name):
        load_model(tmp_path, device="cpu")
