"""What a manifest says of the system that made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.manifest import Times, git_commit, model_card, model_manifest
from trainer_app.core.device import Fingerprint
from trainer_app.core.run_files import Finished
from trainer_app.core.spec import TrainSpec

SPEC = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64, model_size="tiny")


def test_a_machine_without_git_has_no_commit_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    git_commit.cache_clear()

    assert git_commit() is None

    git_commit.cache_clear()


@pytest.mark.parametrize(("told", "commit"), [("0123abc" * 5, "0123abc" * 5), ("", None)])
def test_an_image_knows_the_commit_that_it_was_built_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, commit: str | None
) -> None:
    monkeypatch.setenv("GIT_COMMIT", told)
    git_commit.cache_clear()

    assert git_commit(tmp_path) == commit

    git_commit.cache_clear()


def finished_on(*threads: int) -> Finished:
    """A run that was trained with these numbers of threads, one after the other."""
    places = tuple(
        Fingerprint(device="cpu", device_name="any", precision="fp32", threads=n, torch="2.0.0")
        for n in threads
    )
    return Finished(
        directory=Path("model"),
        spec=SPEC,
        steps=2,
        batch_size=3,
        accumulation=8,
        epochs=1,
        early_stopped=False,
        final_loss=1.0,
        final_perplexity=2.7,
        loss_chain=None,
        best_val_loss=None,
        test_loss=None,
        test_perplexity=None,
        bits_per_byte=None,
        training_seconds=1.0,
        device="cpu",
        device_name="any",
        precision="fp32",
        threads=threads[-1],
        tokenizer_sha256="0" * 64,
        weights_sha256="0" * 64,
        versions={},
        loads_in_transformers=True,
        fingerprints=places,
    )


def test_a_run_of_more_than_one_place_is_marked_and_one_of_a_single_is_not() -> None:
    times = Times(created_at=0.0, completed_at=1.0, attempts=2)

    assert "fingerprints" not in model_manifest("run-a", finished_on(1), times)
    places = model_manifest("run-a", finished_on(1, 2), times)["fingerprints"]
    expected = {
        "device": "cpu",
        "device_name": "any",
        "precision": "fp32",
        "torch": "2.0.0",
        "engine": 1,
    }
    assert places == [expected | {"threads": 1}, expected | {"threads": 2}]


@pytest.mark.parametrize(
    ("in_transformers", "library"), [(True, "transformers"), (False, "model-trainer")]
)
def test_a_card_names_what_loads_its_model_and_not_the_run(
    in_transformers: bool, library: str
) -> None:
    card = model_card(replace(finished_on(1), loads_in_transformers=in_transformers))
    assert f"library_name: {library}\n" in card
    assert "\n# gpt2 tiny\n" in card
    assert "| final loss | 1.0 |" in card


def test_the_batch_that_is_told_is_the_one_that_was_trained_with() -> None:
    spec = TrainSpec(
        corpus_path="a.txt",
        corpus_sha256="0" * 64,
        batch_size=64,
        gradient_accumulation_steps=16,
        max_seq_len=128,
    )
    times = Times(created_at=0.0, completed_at=1.0, attempts=1)

    finished = replace(finished_on(1), spec=spec)
    manifest = model_manifest("run-a", finished, times)
    assert (manifest["batch_size"], manifest["gradient_accumulation_steps"]) == (3, 8)
    assert manifest["spec"] == json.loads(spec.to_json())  # what was asked for
    assert "for 2 steps of 24 sequences of\n128 tokens" in model_card(finished)
