"""Training on a CPU: this engine against HuggingFace's Trainer and plain loops, on the same work.

    python -m benchmarks.train_cpu [--rounds 5] [--seconds 8] [--works gpt2-mini,...]
        [--threads 0,1] [--compiled] [--bf16] [--dropout] [--sides "ours;lean loop"]

Whole steps (forward, backward, clipping, AdamW) in float32. The sides:

- ours: the engine's step with its data path, uncompiled, which is what ``auto`` means on a CPU
- HF Trainer: with its best flags (fused AdamW, no progress bar, no log), data loading included
- plain loop: the loop of the tutorials, transformers' model and torch's default AdamW
- lean loop: a GPT-2 written by hand (lean_gpt.py) and the fused AdamW
- ``--compiled``: ours and the lean loop through torch's compiler; ``seconds_before`` has its cost
- ``--bf16``: the lean loop with autocast
- ``--dropout``: the plain loop with the dropouts that transformers' GPT-2 has by default

For char_lstm both loops run the layers that the engine has, there is no Trainer, and nothing is
compiled. The sides take turns, so that whatever else the machine does hits all, each in a process
of its own each time: that makes peaks of memory honest. Prints a JSON line for each figure, then a
table: medians of the rounds in tokens a second, the most memory above what the process had before
it built a model (modules that are loaded later count), and this engine's speed as a multiple.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final

import psutil
import torch

from benchmarks.sides import (
    Setting,
    Speed,
    Work,
    in_own_process,
    lean_loop,
    listed,
    ours,
    plain_loop,
    stepped,
    trainer_speed,
)
from trainer_app.core.device import device_name, forget_peak_memory, peak_memory, use_threads

GPT2_SMALL: Final = Work(
    name="gpt2-small", width=768, layers=12, heads=12, vocab_size=4000, seq_len=128, batch_size=8
)
WORKS: Final = (
    Work(
        name="gpt2-mini", width=256, layers=4, heads=4, vocab_size=4096, seq_len=256, batch_size=8
    ),
    Work(name="gpt2-tiny", width=128, layers=2, heads=2, vocab_size=256, seq_len=128, batch_size=8),
    GPT2_SMALL,
    Work(name="char-lstm-small", family="char_lstm", vocab_size=100, seq_len=128, batch_size=8),
)
SETTING: Final = Setting(device="cpu", precision="fp32")


def in_bf16(side: Speed) -> Speed:
    """The same under autocast."""

    def measured(work: Work, setting: Setting, seconds: float) -> float:
        return side(work, replace(setting, precision="bf16"), seconds)

    return measured


USUAL: Final[dict[str, Speed]] = {
    "ours": stepped(partial(ours, choice="off")),
    "HF Trainer": partial(trainer_speed, compiled=False),
    "plain loop": stepped(partial(plain_loop, fused=False)),
    "lean loop": stepped(partial(lean_loop, compiled=False)),
}
COMPILED: Final[dict[str, Speed]] = {
    "ours, compiled": stepped(partial(ours, choice="on")),
    "lean loop, compiled": stepped(partial(lean_loop, compiled=True)),
}
BF16: Final[dict[str, Speed]] = {
    "lean loop, bf16": in_bf16(stepped(partial(lean_loop, compiled=False))),
}
DROPOUT: Final[dict[str, Speed]] = {
    "plain loop, dropout": stepped(partial(plain_loop, fused=False, dropout=0.1)),
}
SIDES: Final = USUAL | COMPILED | BF16 | DROPOUT
OF_LSTM: Final = ("ours", "plain loop", "lean loop", "lean loop, bf16")


class Args(argparse.Namespace):
    """The command line."""

    rounds: int
    seconds: float
    works: list[str]
    threads: list[int]
    compiled: bool
    bf16: bool
    dropout: bool
    sides: list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of a side."""

    tokens_per_sec: float
    seconds_before: float  # building, warming up, compiling
    peak_mib: float  # above the process


def one_round(side: str, work: Work, threads: int, seconds: float) -> Figures:
    """One side, once; to be called in a process of its own."""
    use_threads(threads)
    before = psutil.Process().memory_info().rss
    forget_peak_memory("cpu")
    began = time.perf_counter()
    tokens = SIDES[side](work, SETTING, seconds)
    return Figures(
        tokens_per_sec=tokens,
        seconds_before=max(0.0, time.perf_counter() - began - seconds),
        peak_mib=(peak_memory("cpu") - before) / 2**20,
    )


def compare(
    work: Work, sides: Sequence[str], *, threads: int, rounds: int, seconds: float
) -> dict[str, tuple[Figures, float | None]]:
    """The medians of each side, and of this engine's speed as a multiple of it in each round."""
    seen: dict[str, list[Figures]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            seen[side].append(in_own_process(one_round, side, work, threads, seconds))
    result = {}
    for side, figures in seen.items():
        medians = Figures(
            tokens_per_sec=statistics.median(f.tokens_per_sec for f in figures),
            seconds_before=statistics.median(f.seconds_before for f in figures),
            peak_mib=max(f.peak_mib for f in figures),
        )
        multiple = None
        if "ours" in seen:
            pairs = zip(seen["ours"], figures, strict=True)
            multiple = statistics.median(a.tokens_per_sec / b.tokens_per_sec for a, b in pairs)
        line = {"work": work.name, "threads": threads, "side": side, **asdict(medians)}
        print(json.dumps(line | {"ours_over_this": multiple}), flush=True)
        result[side] = (medians, multiple)
    return result


def main() -> None:
    """Run all comparisons and print them."""
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side and round")
    parser.add_argument("--works", type=listed(names), default=names, help=",".join(names))
    parser.add_argument(
        "--threads",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[0],
        help="0: all cores; 0,1: both",
    )
    parser.add_argument("--compiled", action="store_true", help="two compiled sides as well")
    parser.add_argument("--bf16", action="store_true", help="a side with autocast as well")
    parser.add_argument("--dropout", action="store_true", help="a side with dropout as well")
    parser.add_argument(
        "--sides", type=listed(SIDES, ";"), default=None, help="instead: " + ";".join(SIDES)
    )
    options = parser.parse_args(namespace=Args())
    sides = options.sides or [
        *USUAL,
        *(COMPILED if options.compiled else ()),
        *(BF16 if options.bf16 else ()),
        *(DROPOUT if options.dropout else ()),
    ]
    rows = []
    for work in WORKS:
        if work.name not in options.works:
            continue
        own = [side for side in sides if work.family == "gpt2" or side in OF_LSTM]
        for threads in options.threads:
            figures = compare(
                work, own, threads=threads, rounds=options.rounds, seconds=options.seconds
            )
            rows.append((f"{work.name}, threads: {threads or 'all'}", figures))
    print(f"\n{device_name('cpu')}, torch {torch.__version__}; tokens/s, MiB above, ours is times")
    print(f"{'work':30}" + "".join(f"{side:>24}" for side in sides))
    for name, figures in rows:
        print(f"{name:30}" + "".join(f"{cell(figures.get(side)):>24}" for side in sides))


def cell(measured: tuple[Figures, float | None] | None) -> str:
    """Of the table."""
    if measured is None:
        return "-"
    figures, multiple = measured
    times = "" if multiple is None else f"{multiple:6.2f}"
    return f"{figures.tokens_per_sec:,.0f} {figures.peak_mib:6,.0f}{times}"


if __name__ == "__main__":
    main()
