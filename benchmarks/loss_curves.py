"""How far the loss curve of each precision is from that of the first, on real text.

    python -m benchmarks.loss_curves [--steps 1000] [--precisions bf16 fp16 fp8] [--size small]
        [--seq-len 1024] [--batch-size 16] [--vocab-size 4096] [--learning-rate 6e-4]
        [--seed 42] [--torch-compile on] [--device cuda]

The runs are equal in all but the precision: the demo's corpus and tokenizer (the source of
Python's standard library, a byte-level BPE), on a GPU compiled unless asked otherwise.
Prints a JSON line for each run, the mean training loss of each tenth of it in nats per token, then
that of validation at the end; last a table of the differences in percent.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from benchmarks.optimizers import VOCAB_SIZE, Bench, Curve, ModelArgs, bench
from trainer_app.core.observer import EvaluationReport, StepReport
from trainer_app.core.spec import DEVICES, PRECISIONS, RequestedPrecision

PARTS: Final = 10


class Args(ModelArgs):
    """The command line."""

    steps: int
    precisions: list[RequestedPrecision]
    learning_rate: float
    seed: int
    torch_compile: Literal["on", "off"] | None


class Losses(Curve):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.train: list[float] = []
        self.validation = float("nan")

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        super().on_steps(steps)
        self.train += [step.train_loss for step in steps]

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self.validation = evaluation.val_loss

    def parts(self) -> list[float]:
        """Mean losses of each part of the run, then that of validation."""
        size = -(-len(self.train) // PARTS)
        starts = range(0, len(self.train), size)
        return [*(statistics.mean(self.train[n : n + size]) for n in starts), self.validation]


def curve(made: Bench, precision: RequestedPrecision) -> list[float]:
    """Of a run in this precision, told line by line."""
    parts = made.train(replace(made.spec, precision=precision), Losses()).parts()
    print(json.dumps({"precision": precision, "losses": [round(loss, 4) for loss in parts]}))
    return parts


def main() -> None:
    """Train in each precision and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000)
    known = [name for name in PRECISIONS if name != "auto"]
    parser.add_argument("--precisions", nargs="+", choices=known, default=["bf16", "fp16", "fp8"])
    parser.add_argument("--size", default="small", help="of GPT-2")
    parser.add_argument("--seq-len", type=int, default=1_024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="of the tokenizer")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--torch-compile", choices=["on", "off"], default=None)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    options = parser.parse_args(namespace=Args())
    with TemporaryDirectory() as place:
        made = bench(Path(place), options)
        spec = replace(
            made.spec,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            torch_compile=options.torch_compile or ("on" if options.device == "cuda" else "off"),
        )
        made = replace(made, spec=spec)
        curves = {precision: curve(made, precision) for precision in options.precisions}
    first, *others = curves.items()
    print(f"\nloss of {first[0]} in each tenth, and of validation; differences from it in percent")
    print(f"{first[0]:8}" + "".join(f"{loss:9.4f}" for loss in first[1]))
    for precision, losses in others:
        apart = (100 * (b / a - 1) for a, b in zip(first[1], losses, strict=True))
        print(f"{precision:8}" + "".join(f"{percent:+9.3f}" for percent in apart))


if __name__ == "__main__":
    main()
