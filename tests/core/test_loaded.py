"""A finished model, read from its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from backends.contracts import ModelConfig
from backends.loading import model_family, tokenizer_kind
from backends.registry import MODEL_FAMILIES
from trainer_app.core.loaded import load_model
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import ModelIncompatible

CORPUS = "The quick brown fox jumps over the lazy dog.\n"


def artifact(folder: Path, family: str, *, vocab_size: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
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


WITHOUT_COMPILER = """
import hashlib, sys
from pathlib import Path

sys.modules["torch._dynamo"] = None  # to import it is an error

from trainer_app.core.evaluate_run import evaluate_text
from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import load_model
from trainer_app.core.score import score
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import never

for folder in map(Path, sys.argv[1:]):
    loaded = load_model(folder, device="cpu")
    generate(loaded, GenerateSpec(prompt_text="The", max_new_tokens=4), should_stop=never)
    score(loaded, ScoreSpec(text="The quick brown fox"), should_stop=never)
    text = folder / "text"
    text.write_text("The lazy dog.")
    evaluate_text(
        folder,
        text,
        sha256=hashlib.sha256(text.read_bytes()).hexdigest(),
        spec=TrainSpec(
            model_family=folder.name, model_size="tiny", max_seq_len=16, corpus_sha256=""
        ),
        tokens=folder / "tokens",
        device="cpu",
        on_message=print,
        should_stop=never,
    )
"""


def test_whoever_only_uses_models_does_without_the_compiler(tmp_path: Path) -> None:
    """A second of CPU time and 70 MB of each process that does not train."""
    folders = [artifact(tmp_path / family, family) for family in MODEL_FAMILIES]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, *map(str, folders)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match="the tokenizer has 34 tokens, the model 99"):
        load_model(artifact(tmp_path, "gpt2", vocab_size=99), device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    (artifact(tmp_path, "gpt2") / name).unlink()
    with pytest.raises(ModelIncompatible, match=name):
        load_model(tmp_path, device="cpu")


FIGURES = [
    ("gpt2", "n_head", 4, "of gpt2 custom"),
    ("gpt2", "layer_norm_epsilon", 1e-3, "of gpt2 custom"),
    ("llama", "max_position_embeddings", 1, "context of 1 tokens"),
    ("llama", "max_position_embeddings", 64, "context of 64 tokens"),
    ("llama", "rope_theta", 5e4, "of llama custom"),
    ("qwen", "max_position_embeddings", 8, "context of 8 tokens"),
    ("char_lstm", "max_seq_len", 8, "context of 8 tokens"),
]


@pytest.mark.parametrize(("family", "field", "value", "named"), FIGURES)
def test_a_config_that_is_not_the_runs_is_refused_although_the_weights_fit(
    family: str, field: str, value: float, named: str, tmp_path: Path
) -> None:
    spec = TrainSpec(model_family=family, model_size="tiny", max_seq_len=16, corpus_sha256="")
    path = artifact(tmp_path, family) / "config.json"
    load_model(tmp_path, device="cpu").check_trained_as(spec)
    config = json.loads(path.read_text())
    config[field] = value
    if field == "rope_theta":
        config["rope_parameters"][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ModelIncompatible, match=rf"config\.json .*{named}, but the run trained"):
        load_model(tmp_path, device="cpu").check_trained_as(spec)


@pytest.mark.parametrize(
    ("family", "trained", "fits"),
    [("gpt2", 8, True), ("gpt2", 16, True), ("gpt2", 17, False), ("char_lstm", 17, True)],
)
def test_a_fine_tuned_model_may_have_a_longer_context_than_its_run(
    family: str, trained: int, fits: bool, tmp_path: Path
) -> None:
    spec = TrainSpec(model_family=family, model_size="tiny", max_seq_len=trained, corpus_sha256="")
    loaded = load_model(artifact(tmp_path, family), device="cpu")
    tuned = replace(spec, pretrained_run_id="run-1")
    if fits:
        loaded.check_trained_as(tuned)
    else:
        with pytest.raises(ModelIncompatible, match=r"16 tokens, .* max_seq_len 17"):
            loaded.check_trained_as(tuned)
