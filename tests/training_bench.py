"""A folder to train in, and an observer that remembers: for tests with a GPU and without."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer_app.core.fit import fit
from trainer_app.core.observer import (
    CheckpointReport,
    EvaluationReport,
    Observer,
    Silent,
    StartReport,
    StepReport,
    StopReason,
)
from trainer_app.core.run_files import Finished, Inputs, Stopped, Workspace
from trainer_app.core.spec import TrainSpec


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
        compiled: Path | None = None,
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
                compiled=compiled,
            ),
            observer,
        )

    def finish(
        self,
        spec: TrainSpec,
        *,
        run: str = "run",
        attempt: int = 1,
        base_model: Path | None = None,
    ) -> Finished:
        """Train to the end."""
        outcome = self.fit(spec, Recorder(), run=run, attempt=attempt, base_model=base_model)
        assert isinstance(outcome, Finished)
        return outcome

    def with_corpus(self, name: str, text: str) -> Bench:
        """The same with another corpus."""
        corpus = self.folder / name
        corpus.write_text(text)
        sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
        return replace(self, corpus=corpus, spec=replace(self.spec, corpus_sha256=sha256))
