"""The models that an inference worker keeps: few, and no more bytes than its share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backends.contracts import ModelConfig
from backends.loading import model_family, tokenizer_kind
from tasks.models import KeptModels
from trainer_app import artifacts
from trainer_app.errors import ModelIncompatible


def published(
    root: Path, name: str, *, family: str = "char_lstm", size: str = "tiny", context: int = 16
) -> Path:
    """A finished model that nobody has trained."""
    staging = root / f"staging-{name}"
    staging.mkdir()
    tokenizer = tokenizer_kind("char").train(["some text"], vocab_size=100, min_frequency=1)
    config = ModelConfig(
        family=family, size=size, vocab_size=tokenizer.vocab_size, max_seq_len=context
    )
    model_family(family).save(model_family(family).build(config), staging)
    tokenizer.save(staging)
    artifacts.publish(staging, root / name, {"name": name})
    return root / name


@pytest.fixture
def size(tmp_path: Path) -> int:
    """Bytes of one model."""
    return (published(tmp_path, "any") / "model.safetensors").stat().st_size


def test_the_four_used_last_are_kept(tmp_path: Path) -> None:
    kept = KeptModels(device="cpu", max_bytes=10**12)
    first, second, *others = (published(tmp_path, name) for name in "abcde")
    loaded, unused = kept.load(first), kept.load(second)
    for other in others[:2]:
        kept.load(other)
    assert kept.load(first) is loaded
    kept.load(others[2])
    assert kept.load(first) is loaded
    assert kept.load(second) is not unused


def test_no_more_bytes_are_kept_than_the_share(tmp_path: Path, size: int) -> None:
    kept = KeptModels(device="cpu", max_bytes=2 * size)
    first, second, third = (published(tmp_path, name) for name in "abc")
    loaded = kept.load(first)
    kept.load(second)
    assert kept.load(first) is loaded
    kept.load(third)  # in place of the second
    assert kept.load(first) is loaded


def test_a_model_beyond_the_share_is_kept_alone(tmp_path: Path, size: int) -> None:
    kept = KeptModels(device="cpu", max_bytes=size - 1)
    first, second = published(tmp_path, "a"), published(tmp_path, "b")
    loaded = kept.load(first)
    assert kept.load(first) is loaded
    kept.load(second)
    assert kept.load(first) is not loaded


def test_a_model_whose_artifact_was_replaced_is_read_again(tmp_path: Path) -> None:
    kept = KeptModels(device="cpu", max_bytes=10**12)
    folder = published(tmp_path, "a")
    assert kept.load(folder).model.config.max_seq_len == 16
    folder.rename(tmp_path / "old")
    published(tmp_path, "a", context=32)
    assert kept.load(folder).model.config.max_seq_len == 32


def test_weights_of_which_a_bit_has_flipped_are_not_used(tmp_path: Path) -> None:
    directory = published(tmp_path, "a")
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(ModelIncompatible, match=r"model\.safetensors of a is damaged"):
        KeptModels(device="cpu", max_bytes=10**12).load(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_loaded_and_has_no_digest_is_refused(tmp_path: Path, name: str) -> None:
    model = published(tmp_path, "a")
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["files"][name]
    (model / "manifest.json").write_text(json.dumps(manifest))
    (model / name).unlink()
    os.mkfifo(model / name)  # to open it would be to wait for ever

    with pytest.raises(ModelIncompatible, match=f"its manifest does not list {name}"):
        KeptModels(device="cpu", max_bytes=10**12).load(model)


def test_a_file_that_somebody_has_put_beside_a_model_is_no_harm(tmp_path: Path) -> None:
    model = published(tmp_path, "a")
    (model / "notes.txt").write_text("the best one so far")

    KeptModels(device="cpu", max_bytes=10**12).load(model)


def test_all_files_of_a_model_can_be_read_by_the_same_people(tmp_path: Path) -> None:
    model = published(tmp_path, "a")
    assert len({path.stat().st_mode for path in model.iterdir() if path.is_file()}) == 1


def test_a_manifest_that_was_put_in_place_since_it_was_checked_is_refused(tmp_path: Path) -> None:
    model = published(tmp_path, "a")
    kept = KeptModels(device="cpu", max_bytes=10**12)
    sealed = artifacts.pointer(model).sha256
    kept.load(model, sealed=sealed)
    manifest = model / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ModelIncompatible, match=r"manifest\.json"):
        kept.load(model, sealed=sealed)
