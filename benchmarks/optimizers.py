"""What each optimizer makes of the same time: validation loss after so many seconds of training.

    python -m benchmarks.optimizers [--seconds 60] [--rates 2e-3 4e-3 8e-3]
        [--optimizers adamw muon] [--size tiny] [--seq-len 64] [--batch-size 16] [--device auto]

On the demo's corpus and tokenizer (the source of Python's standard library, a byte-level BPE of
4,096). A short run of each optimizer finds out how many steps the time is, so that the learning
rate has come down when it is over. Prints a JSON line a run, then a table. Random in nothing but
the speed of the machine: use one that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from backends.loading import tokenizer_kind
from trainer_app.cli.demo_corpus import write_corpus
from trainer_app.core.device import resolve_device
from trainer_app.core.fit import Finished, Inputs, Workspace, fit
from trainer_app.core.observer import Silent, StepReport
from trainer_app.core.spec import DEVICES, OPTIMIZERS, OptimizerName, RequestedDevice, TrainSpec

VOCAB_SIZE: Final = 4_096
_PROBE_STEPS: Final = {"cpu": 60, "cuda": 2_000}


class Args(argparse.Namespace):
    """The command line."""

    seconds: float
    rates: list[float]
    optimizers: list[OptimizerName]
    size: str
    seq_len: int
    batch_size: int
    device: RequestedDevice


class Speed(Silent):
    """Remembers the tokens a second of a run."""

    def __init__(self) -> None:
        self._rates: list[float] = []

    @property
    def tokens_per_second(self) -> float:
        """Of the later half of the steps: the first ones warm caches."""
        return statistics.median(self._rates[len(self._rates) // 2 :])

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._rates += [step.tokens_per_sec for step in steps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A folder with the demo's corpus and a tokenizer of it."""

    folder: Path
    spec: TrainSpec

    def train(self, spec: TrainSpec, name: str) -> tuple[Finished, float]:
        """A run of its own, and its tokens a second."""
        inputs = Inputs(corpus=self.folder / "corpus.txt", tokenizer=self.folder / "tokenizer")
        workspace = Workspace(
            run=self.folder / name,
            tokens=self.folder / "tokens",
            attempt=1,
            checkpoint_seconds=3_600.0,
        )
        speed = Speed()
        outcome = fit(spec, inputs, workspace, speed)
        assert isinstance(outcome, Finished)
        return outcome, speed.tokens_per_second


def bench(folder: Path, options: Args) -> Bench:
    """The corpus and the tokenizer, made in the folder."""
    corpus = folder / "corpus.txt"
    write_corpus(corpus)
    text = corpus.read_text("utf-8")
    (folder / "tokenizer").mkdir()
    kind = tokenizer_kind("bpe")
    kind.train(text.splitlines(keepends=True), vocab_size=VOCAB_SIZE, min_frequency=2).save(
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
        eval_steps=1_000_000_000,  # at the end alone
        torch_compile="off",
    )
    return Bench(folder=folder, spec=spec)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=("adamw", "muon"))
    parser.add_argument("--size", default="tiny", help="of GPT-2")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    options = parser.parse_args(namespace=Args())
    rows = []
    with TemporaryDirectory() as place:
        made = bench(Path(place), options)
        for optimizer in options.optimizers:
            spec = replace(made.spec, optimizer=optimizer)
            probe_steps = _PROBE_STEPS[resolve_device(options.device)]
            probe = replace(spec, max_steps=probe_steps, learning_rate=0.0)
            _, tokens_per_second = made.train(probe, f"probe-{optimizer}")
            tokens = spec.max_seq_len * spec.batch_size
            steps = max(1, round(tokens_per_second * options.seconds / tokens))
            for rate in options.rates:
                run = replace(spec, max_steps=steps, learning_rate=rate)
                outcome, _ = made.train(run, f"{optimizer}-{rate}")
                row = {
                    "optimizer": optimizer,
                    "learning_rate": rate,
                    "steps": steps,
                    "seconds": round(outcome.training_seconds, 1),
                    "val_loss": outcome.best_val_loss,
                }
                print(json.dumps(row), flush=True)
                rows.append(row)
    print(f"\n{'optimizer':12}{'rate':>8}{'steps':>8}{'seconds':>9}{'val loss':>10}")
    for row in rows:
        print(
            f"{row['optimizer']:12}{row['learning_rate']:8g}{row['steps']:8}"
            f"{row['seconds']:9}{row['val_loss']:10.4f}"
        )


if __name__ == "__main__":
    main()
