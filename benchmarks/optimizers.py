"""What each optimizer makes of the same time: validation loss after so many seconds of training.

    python -m benchmarks.optimizers [--seconds 60] [--optimizers adamw muon]
        [--rates 2e-3 4e-3 8e-3] [--adamw-rates 3e-3 6e-3] [--muon-rates 1e-3 2e-3]
        [--evaluations 10] [--size tiny] [--seq-len 64] [--batch-size 16] [--vocab-size 4096]
        [--device auto]

On the demo's corpus and tokenizer (the source of Python's standard library, a byte-level BPE). A
short run of each optimizer finds out how many steps the time is, so that the learning
rate has come down when it is over. Prints a JSON line an evaluation (seconds of training up to
there, without those of evaluating) and a run, then a table of all runs and one of the best rate of
each optimizer, which is to lie between others that were tried. Random in nothing but the speed of
the machine: use one that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import file_digest
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from backends.loading import tokenizer_kind
from trainer_app.cli.demo_corpus import write_corpus
from trainer_app.core.device import resolve_device
from trainer_app.core.fit import fit
from trainer_app.core.observer import EvaluationReport, Silent, StepReport
from trainer_app.core.run_files import Finished, Inputs, Workspace
from trainer_app.core.spec import (
    DEVICES,
    OPTIMIZERS,
    WEIGHT_DECAY,
    OptimizerName,
    RequestedDevice,
    TrainSpec,
)

VOCAB_SIZE: Final = 4_096  # unless asked otherwise
_PROBE_STEPS: Final = {"cpu": 60, "cuda": 2_000}


class ModelArgs(argparse.Namespace):
    """What is trained, and where."""

    size: str
    seq_len: int
    batch_size: int
    vocab_size: int
    device: RequestedDevice


class Args(ModelArgs):
    """The command line."""

    seconds: float
    rates: list[float]  # of an optimizer that has none of its own, such as adamw_rates
    optimizers: list[OptimizerName]
    evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One evaluation."""

    step: int
    seconds: float  # of training before it
    val_loss: float


class Curve(Silent):
    """Remembers how fast a run was and what its evaluations said."""

    def __init__(self, tell: Callable[[Look], None]) -> None:
        self._tell = tell
        self._rates: list[float] = []
        self._seconds = 0.0
        self.looks: list[Look] = []

    @property
    def tokens_per_second(self) -> float:
        """Of the later half of the steps: the first ones warm caches."""
        return statistics.median(self._rates[len(self._rates) // 2 :])

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._rates += [step.tokens_per_sec for step in steps]
        self._seconds += sum(step.step_ms for step in steps) / 1_000

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        look = Look(
            step=evaluation.step, seconds=round(self._seconds, 2), val_loss=evaluation.val_loss
        )
        self.looks.append(look)
        self._tell(look)


CurveT = TypeVar("CurveT", bound=Curve)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of an optimizer at a learning rate."""

    optimizer: OptimizerName
    learning_rate: float
    steps: int
    seconds: float  # of training
    val_loss: float  # when they were over


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A folder with the demo's corpus and a tokenizer of it."""

    folder: Path
    spec: TrainSpec

    def train(self, spec: TrainSpec, curve: CurveT) -> CurveT:
        """A run of its own; returns ``curve``, which has watched it."""
        inputs = Inputs(corpus=self.folder / "corpus.txt", tokenizer=self.folder / "tokenizer")
        with TemporaryDirectory(dir=self.folder) as place:
            workspace = Workspace(
                run=Path(place),
                tokens=self.folder / "tokens",
                attempt=1,
                checkpoint_seconds=3_600.0,
            )
            assert isinstance(fit(spec, inputs, workspace, curve), Finished)
        return curve

    def steps_in(self, seconds: float, optimizer: OptimizerName) -> int:
        """How many steps of an optimizer take so long."""
        steps = _PROBE_STEPS[resolve_device(self.spec.device)]
        probe = replace(self.spec, optimizer=optimizer, max_steps=steps, learning_rate=0.0)
        curve = self.train(probe, Curve(lambda _: None))
        tokens = self.spec.max_seq_len * self.spec.batch_size
        return max(1, round(curve.tokens_per_second * seconds / tokens))

    def compare(
        self, optimizer: OptimizerName, rates: Sequence[float], *, steps: int, evaluations: int
    ) -> list[Run]:
        """A run at each rate, told line by line."""
        runs = []
        for rate in rates:
            what = {"optimizer": optimizer, "learning_rate": rate}
            spec = replace(
                self.spec,
                optimizer=optimizer,
                weight_decay=WEIGHT_DECAY[optimizer],
                learning_rate=rate,
                max_steps=steps,
                eval_steps=math.ceil(steps / evaluations),
            )
            curve = self.train(spec, Curve(partial(_print, what)))
            last = curve.looks[-1]
            run = Run(
                optimizer=optimizer,
                learning_rate=rate,
                steps=steps,
                seconds=last.seconds,
                val_loss=last.val_loss,
            )
            print(json.dumps(asdict(run)), flush=True)
            runs.append(run)
        return runs


def _print(what: Mapping[str, object], look: Look) -> None:
    print(json.dumps({**what, **asdict(look)}), flush=True)


def bench(folder: Path, options: ModelArgs) -> Bench:
    """The corpus and the tokenizer, made in the folder."""
    corpus = folder / "corpus.txt"
    write_corpus(corpus)
    text = corpus.read_text("utf-8")
    (folder / "tokenizer").mkdir()
    kind = tokenizer_kind("bpe")
    kind.train(text.splitlines(keepends=True), vocab_size=options.vocab_size, min_frequency=2).save(
        folder / "tokenizer"
    )
    with corpus.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    spec = TrainSpec(
        corpus_sha256=digest,
        model_size=options.size,
        max_seq_len=options.seq_len,
        batch_size=options.batch_size,
        num_epochs=1_000,
        holdout_fraction=0.005,
        test_split_ratio=0.0,
        early_stopping_patience=0,
        device=options.device,
        eval_steps=1_000_000_000,  # of the probes: at the end alone
        torch_compile="off",
    )
    return Bench(folder=folder, spec=spec)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    for name in OPTIMIZERS:
        parser.add_argument(f"--{name}-rates", type=float, nargs="+", help="in place of --rates")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=("adamw", "muon"))
    parser.add_argument("--evaluations", type=int, default=10, help="of each run")
    parser.add_argument("--size", default="tiny", help="of GPT-2")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="of the tokenizer")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    options = parser.parse_args(namespace=Args())
    runs = []
    with TemporaryDirectory() as place:
        made = bench(Path(place), options)
        for optimizer in options.optimizers:
            rates: list[float] = vars(options)[f"{optimizer}_rates"] or options.rates
            steps = made.steps_in(options.seconds, optimizer)
            runs += made.compare(optimizer, rates, steps=steps, evaluations=options.evaluations)
    print_table("all runs", runs)
    best = [
        min((run for run in runs if run.optimizer == optimizer), key=attrgetter("val_loss"))
        for optimizer in options.optimizers
    ]
    print_table("best rates", best)


def print_table(title: str, runs: Sequence[Run]) -> None:
    """A line a run."""
    print(f"\n{title:12}{'rate':>8}{'steps':>8}{'seconds':>9}{'val loss':>10}")
    for run in runs:
        print(
            f"{run.optimizer:12}{run.learning_rate:8g}{run.steps:8}"
            f"{run.seconds:9.1f}{run.val_loss:10.4f}"
        )


if __name__ == "__main__":
    main()
