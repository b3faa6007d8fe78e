"""What checkpoints cost a training run.

    python -m benchmarks.checkpoints [--device cpu] [--size mini] [--rounds 3] [--seconds 30]
        [--every 10]

Runs with a checkpoint every so many seconds and runs without take turns, so that whatever else the
machine does hits both. Prints a JSON line a figure, then a table: tokens a second of each kind
(medians), how long a checkpoint took to be written, and the share of the throughput that is lost
at the default interval of 60 s.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from backends.loading import tokenizer_kind
from trainer_app.core.fit import fit
from trainer_app.core.observer import CheckpointReport, Silent, StepReport, StopReason
from trainer_app.core.run_files import Inputs, Workspace
from trainer_app.core.spec import TrainSpec

_DEFAULT_INTERVAL: Final = 60.0  # seconds
_NEVER: Final = 1e9


class Stopwatch(Silent):
    """Trains for so many seconds, from the first step on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._first = self._last = 0
        self._ended = 0.0
        self.checkpoints: list[float] = []  # seconds each took

    @property
    def steps_per_second(self) -> float:
        assert self._began is not None
        return (self._last - self._first) / (self._ended - self._began)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._last, self._ended = steps[-1].step, time.monotonic()
        if self._began is None:
            self._first, self._began = self._last, self._ended

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        self.checkpoints.append(checkpoint.seconds)

    def should_stop(self) -> StopReason | None:
        over = self._began is not None and time.monotonic() - self._began > self._seconds
        return StopReason.FENCED if over else None  # nothing is written at the end


def train(folder: Path, spec: TrainSpec, *, name: str, seconds: float, every: float) -> Stopwatch:
    """One run of its own."""
    watch = Stopwatch(seconds)
    workspace = Workspace(
        run=folder / name, tokens=folder / "tokens", attempt=1, checkpoint_seconds=every
    )
    inputs = Inputs(corpus=folder / "corpus.txt", tokenizer=folder / "tokenizer")
    fit(spec, inputs, workspace, watch)
    return watch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", default="mini", help="of GPT-2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between checkpoints")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()

    words = random.Random(0)
    lines = [" ".join(words.choices(("an", "old", "sea", "tree"), k=40)) for _ in range(10_000)]
    text = "\n".join(lines)
    spec = TrainSpec(
        device=options.device,
        model_size=options.size,
        max_seq_len=256,
        batch_size=8,
        num_epochs=1_000,
        logging_steps=1,
        holdout_fraction=0.0,
        test_split_ratio=0.0,
        torch_compile="off",  # or one side would wait for the compiler, in the measured time
        corpus_sha256=sha256(text.encode()).hexdigest(),
    )
    kinds = {"without": _NEVER, "with": options.every}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    written: list[float] = []
    with TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        (folder / "corpus.txt").write_text(text)
        (folder / "tokenizer").mkdir()
        tokenizer = tokenizer_kind("char").train(lines, vocab_size=100, min_frequency=1)
        tokenizer.save(folder / "tokenizer")
        for number in range(options.rounds):
            for kind, every in kinds.items():
                name = f"{kind}-{number}"
                watch = train(folder, spec, name=name, seconds=options.seconds, every=every)
                tokens = watch.steps_per_second * spec.batch_size * spec.max_seq_len
                speeds[kind].append(tokens)
                written += watch.checkpoints
                print(json.dumps({"run": kind, "tokens_per_sec": round(tokens)}), flush=True)
    medians = {kind: statistics.median(values) for kind, values in speeds.items()}
    lost = 1 - medians["with"] / medians["without"]
    figures = {
        "checkpoints": len(written),
        "checkpoint_seconds": round(statistics.median(written), 3),
        "lost_percent_at_this_interval": round(100 * lost, 2),
        "lost_percent_at_60_s": round(100 * lost * options.every / _DEFAULT_INTERVAL, 2),
    }
    print(json.dumps(figures))
    print(f"\n{'':34}tokens/s")
    for kind, tokens in medians.items():
        print(f"{kind + ' checkpoints':34}{tokens:8,.0f}")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):34}{value:8}")


if __name__ == "__main__":
    main()
