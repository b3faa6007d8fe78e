"""Small corpora, small models and an observer that remembers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backends.loading import tokenizer_kind
from trainer_app.core.fit import Finished, Inputs, Stopped, Workspace, fit
from trainer_app.core.observer import (
    CheckpointReport,
    EvaluationReport,
    Observer,
    Silent,
    StartReport,
    StepReport,
    StopReason,
)
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


@dataclass
class Recorder(Silent):
    """Remembers all that it is told, and asks to stop when told to."""

    messages: list[str] = field(default_factory=list)
    starts: list[StartReport] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    checkpoints: list[CheckpointReport] = field(default_factory=list)
    asked: int = 0  # how often should_stop was asked since the start of training
    stop_after: int | None = None  # such questions answered with no
    reason: StopReason = StopReason.DRAIN

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    def on_start(self, start: StartReport) -> None:
        self.starts.append(start)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self.steps.extend(steps)

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self.evaluations.append(evaluation)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        self.checkpoints.append(checkpoint)

    def should_stop(self) -> StopReason | None:
        if not self.starts or self.stop_after is None:
            return None
        self.asked += 1
        return self.reason if self.asked > self.stop_after else None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder with a corpus and a tokenizer, and a way to train on them."""

    folder: Path
    corpus: Path
    tokenizer: Path
    spec: TrainSpec  # of the corpus: tiny, quick

    def fit(
        self,
        spec: TrainSpec,
        observer: Observer,
        *,
        run: str = "run",
        attempt: int = 1,
        checkpoint_seconds: float = 3600.0,
        base_model: Path | None = None,
        own_tokenizer: bool = False,
    ) -> Finished | Stopped:
        """Train. char_lstm makes its own tokenizer, fine-tuning takes the base model's."""
        found = own_tokenizer or (spec.model_family != "char_lstm" and base_model is None)
        return fit(
            spec,
            Inputs(
                corpus=self.corpus,
                tokenizer=self.tokenizer if found else None,
                base_model=base_model,
            ),
            Workspace(
                run=self.folder / run,
                tokens=self.folder / "tokens",
                attempt=attempt,
                checkpoint_seconds=checkpoint_seconds,
                max_threads=1,
            ),
            observer,
        )

    def finish(self, spec: TrainSpec, *, run: str = "run", **others: object) -> Finished:
        """Train to the end."""
        outcome = self.fit(spec, Recorder(), run=run, **others)  # type: ignore[arg-type]
        assert isinstance(outcome, Finished)
        return outcome

    def with_corpus(self, name: str, text: str) -> Bench:
        """The same with another corpus."""
        corpus = self.folder / name
        corpus.write_text(text)
        sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
        return replace(self, corpus=corpus, spec=replace(self.spec, corpus_sha256=sha256))


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
