"""These tests need torch, accelerate, transformers, tokenizers and pytest alone:

python -m pytest -c /dev/null --confcutdir=tests/gpu --import-mode=importlib tests/gpu
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from backends.loading import tokenizer_kind
from trainer_app.core.fit import Finished, Inputs, Stopped, Workspace, fit
from trainer_app.core.observer import EvaluationReport, Silent, StartReport, StepReport, StopReason
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


@dataclass
class Recorder(Silent):
    """Remembers what it is told, and asks to stop after so many questions."""

    stop_after: int | None = None
    starts: list[StartReport] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    asked: int = 0

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    def on_start(self, start: StartReport) -> None:
        self.starts.append(start)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self.steps.extend(steps)

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self.evaluations.append(evaluation)

    def should_stop(self) -> StopReason | None:
        if not self.starts or self.stop_after is None:
            return None
        self.asked += 1
        return StopReason.DRAIN if self.asked > self.stop_after else None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A corpus, a tokenizer and a way to train on them."""

    folder: Path
    tokenizer: Path
    spec: TrainSpec

    def fit(
        self, spec: TrainSpec, observer: Silent, *, run: str = "run", attempt: int = 1
    ) -> Finished | Stopped:
        return fit(
            spec,
            Inputs(
                corpus=self.folder / "corpus.txt",
                tokenizer=None if spec.model_family == "char_lstm" else self.tokenizer,
            ),
            Workspace(
                run=self.folder / run,
                tokens=self.folder / "tokens",
                attempt=attempt,
                checkpoint_seconds=3600.0,
            ),
            observer,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Lines of numbers, and a spec that trains on them for 60 steps."""
    generator = random.Random(0)
    words = [f"word{n}" for n in range(10)]
    text = "\n".join(" ".join(generator.choices(words, k=12)) for _ in range(3_000))
    (tmp_path / "corpus.txt").write_text(text)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tokenizer_kind("bpe").train([text], vocab_size=262, min_frequency=2).save(tokenizer)
    return Bench(
        folder=tmp_path,
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
