"""These tests need torch, accelerate, transformers, tokenizers and pytest alone:

python -m pytest -c /dev/null --confcutdir=tests/gpu --import-mode=importlib tests/gpu
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from backends.loading import tokenizer_kind
from tests.training_bench import Bench, Recorder
from trainer_app.core.spec import TrainSpec


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Lines of numbers, and a spec that trains on them for 60 steps."""
    generator = random.Random(0)
    words = [f"word{n}" for n in range(10)]
    text = "\n".join(" ".join(generator.choices(words, k=12)) for _ in range(3_000))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(text)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tokenizer_kind("bpe").train([text], vocab_size=262, min_frequency=2).save(tokenizer)
    return Bench(
        folder=tmp_path,
        corpus=corpus,
        tokenizer=tokenizer,
        spec=TrainSpec(
            model_family="gpt2",
            model_size="tiny",
            max_seq_len=64,
            batch_size=8,
            max_steps=60,
            eval_steps=20,
            learning_rate=3e-3,
            logging_steps=1,
            holdout_fraction=0.05,
            test_split_ratio=0.05,
            corpus_sha256=hashlib.sha256(text.encode()).hexdigest(),
            device="cuda",
        ),
    )


@pytest.fixture
def recorder() -> type[Recorder]:
    """Makes observers that remember."""
    return Recorder
