"""Small corpora, small models and an observer that remembers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.loading import tokenizer_kind
from tests.training_bench import Bench, Recorder
from trainer_app.core.spec import TrainSpec

TALE = """the river runs past a mill and under old stone bridge where children fish for trout
while evening light falls slowly on fields of barley wheat or rye before winter comes again"""


def story(paragraphs: int, seed: int = 0) -> str:
    """Paragraphs of words in random order: text, though without sense."""
    generator = random.Random(seed)
    return "\n\n".join(
        " ".join(generator.choices(TALE.split(), k=generator.randint(8, 30))).capitalize() + "."
        for _ in range(paragraphs)
    )


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE that knows the story's words."""
    directory = tmp_path_factory.mktemp("tokenizer")
    trained = tokenizer_kind("bpe").train([story(200)], vocab_size=320, min_frequency=2)
    trained.save(directory)
    return directory


@pytest.fixture
def bench(tmp_path: Path, tokenizer_directory: Path) -> Bench:
    """A story of 120 paragraphs and a spec that trains on it for a dozen steps."""
    corpus = tmp_path / "story.txt"
    corpus.write_text(story(120))
    return Bench(
        folder=tmp_path,
        corpus=corpus,
        tokenizer=tokenizer_directory,
        spec=TrainSpec(
            model_family="gpt2",
            model_size="tiny",
            max_seq_len=16,
            batch_size=2,
            max_steps=12,
            eval_steps=4,
            learning_rate=3e-3,
            logging_steps=1,
            holdout_fraction=0.1,
            test_split_ratio=0.1,
            corpus_sha256=hashlib.sha256(corpus.read_bytes()).hexdigest(),
            device="cpu",
        ),
    )


@pytest.fixture
def recorder() -> type[Recorder]:
    """Makes observers that remember."""
    return Recorder


@pytest.fixture(name="story")
def story_fixture() -> Callable[[int], str]:
    """Makes texts of so many paragraphs."""
    return story


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[[bytes], tuple[Path, str]]:
    """Writes a corpus; its path and its SHA-256."""

    def write(content: bytes) -> tuple[Path, str]:
        path = tmp_path / "corpus.txt"
        path.write_bytes(content)
        return path, hashlib.sha256(content).hexdigest()

    return write
