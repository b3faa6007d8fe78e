"""Training on a GPU: this engine against HuggingFace's Trainer and plain loops, on the same work.

    python -m benchmarks.train_gpu [--rounds 3] [--seconds 2] [--works gpt2-124m-b32,...]
        [--precisions bf16,fp16,fp8] [--sides "ours, compiled;lean loop, compiled"]
    python -m benchmarks.train_gpu --steps 2000 --works gpt2-10m --precisions bf16

Figures are medians of the rounds, in tokens a second of whole steps (forward, backward, clipping,
AdamW); all sides take turns in one process, so that whatever else the machine does hits all. What
was compiled, and what was waited for before the first step, stands beside.

With ``--steps`` they are the seconds of a whole run instead: from nothing to the end of that step,
each side in a process of its own each time, with empty caches of compiled code. The clock starts
when the modules are imported; building, compiling, recording and the first kernels are counted.
This engine chooses as a run with ``torch_compile: auto`` does that never ran on this machine.

The peers have no fp8: beside it they compute in bf16, and ``computes_in`` says so. No side has
dropout, but for char_lstm, where both have that of the model. Prints a JSON line for each figure,
then a table. Needs torch, transformers and accelerate alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Final

import torch

from benchmarks.sides import (
    Setting,
    Speed,
    Work,
    in_own_process,
    lean_loop,
    listed,
    our_whole_run,
    ours,
    plain_loop,
    stepped,
    train_by_trainer,
    trainer_speed,
    whole,
)
from trainer_app.core.device import ResolvedPrecision

GPT2_124M: Final = Work(
    name="gpt2-124m-b32",
    width=768,
    layers=12,
    heads=12,
    vocab_size=50257,
    seq_len=1024,
    batch_size=32,
)
LSTM: Final = Work(
    name="char-lstm-b256", family="char_lstm", vocab_size=100, seq_len=512, batch_size=256
)
WORKS: Final = (
    GPT2_124M,
    replace(GPT2_124M, name="gpt2-124m-b8", batch_size=8),
    Work(
        name="gpt2-10m",
        width=384,
        layers=6,
        heads=6,
        vocab_size=256,
        seq_len=256,
        batch_size=64,
    ),
    Work(
        name="gpt2-0.4m",
        width=128,
        layers=2,
        heads=4,
        vocab_size=256,
        seq_len=128,
        batch_size=32,
    ),
    replace(LSTM, name="char-lstm-b64", batch_size=64),
    LSTM,
)
PRECISIONS: Final[dict[str, ResolvedPrecision]] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of a side."""

    tokens_per_sec: float
    seconds_before: float  # building, warming up, compiling
    gib: float  # of the GPU's memory, at most


def by_trainer(work: Work, setting: Setting, steps: int, *, compiled: bool) -> None:
    """So many steps of HuggingFace's Trainer."""
    train_by_trainer(work, setting, compiled=compiled, max_steps=steps)


WholeRun = Callable[[Work, Setting, int], None]
SIDES: Final[dict[str, Speed]] = {
    "ours": stepped(partial(ours, choice="off")),
    "ours, compiled": stepped(partial(ours, choice="on")),
    "plain loop": stepped(plain_loop),
    "lean loop, compiled": stepped(partial(lean_loop, compiled=True)),
    "HF Trainer": partial(trainer_speed, compiled=False),
    "HF Trainer, compiled": partial(trainer_speed, compiled=True),
}
WHOLE_RUNS: Final[dict[str, WholeRun]] = {
    "ours": our_whole_run,
    "lean loop": whole(partial(lean_loop, compiled=False)),
    "lean loop, compiled": whole(partial(lean_loop, compiled=True)),
    "HF Trainer, compiled": partial(by_trainer, compiled=True),
}
OF_LSTM: Final = ("ours", "plain loop", "lean loop")


class Args(argparse.Namespace):
    """The command line."""

    rounds: int
    seconds: float
    steps: int
    works: list[str]
    precisions: list[str]
    sides: list[str] | None


def one_round(side: str, work: Work, setting: Setting, seconds: float) -> Figures:
    """One side, once, with nothing left of the one before."""
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    tokens = SIDES[side](work, setting, seconds)
    return Figures(
        tokens_per_sec=tokens,
        seconds_before=time.perf_counter() - began - seconds,
        gib=torch.cuda.max_memory_reserved() / 2**30,
    )


def whole_run(side: str, work: Work, setting: Setting, steps: int) -> float:
    """Seconds of so many steps of a side; to be called in a process of its own."""
    # The compiler's own processes may still write as the folder goes.
    with TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ |= {
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
        }
        began = time.perf_counter()
        WHOLE_RUNS[side](work, setting, steps)
        setting.wait()
        return time.perf_counter() - began


def computes_in(side: str, setting: Setting) -> ResolvedPrecision:
    """The precision of a side."""
    return setting.precision if side.startswith("ours") else setting.of_peers


def compare(
    work: Work, setting: Setting, sides: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, str]:
    """The medians of each side over the rounds, as cells of the table."""
    seen: dict[str, list[Figures]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            seen[side].append(one_round(side, work, setting, seconds))
    cells = {}
    for side, figures in seen.items():
        median = Figures(
            tokens_per_sec=statistics.median(f.tokens_per_sec for f in figures),
            seconds_before=statistics.median(f.seconds_before for f in figures),
            gib=max(f.gib for f in figures),
        )
        report(work, setting, side, asdict(median))
        cells[side] = f"{median.tokens_per_sec:,.0f} {median.gib:5.1f}"
    return cells


def compare_whole_runs(
    work: Work, setting: Setting, sides: Sequence[str], *, rounds: int, steps: int
) -> dict[str, str]:
    """Likewise the seconds of whole runs."""
    seen: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            seconds = in_own_process(whole_run, side, work, setting, steps)
            report(work, setting, side, {"steps": steps, "seconds": seconds})  # it took long
            seen[side].append(seconds)
    return {side: f"{statistics.median(each):.1f}" for side, each in seen.items()}


def report(work: Work, setting: Setting, side: str, figures: dict[str, object]) -> None:
    """Print a JSON line."""
    what = {
        "work": work.name,
        "precision": setting.precision,
        "side": side,
        "computes_in": computes_in(side, setting),
    }
    print(json.dumps(what | figures), flush=True)


def main() -> None:
    """Run all comparisons and print them."""
    names = [work.name for work in WORKS]
    known = list(dict.fromkeys([*SIDES, *WHOLE_RUNS]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side and round")
    parser.add_argument("--steps", type=int, default=0, help="whole runs of so many; 0: speeds")
    parser.add_argument("--works", type=listed(names), default=names, help=",".join(names))
    parser.add_argument("--precisions", type=listed(PRECISIONS), default=["bf16", "fp16"])
    parser.add_argument("--sides", type=listed(known, ";"), default=None, help="default: all")
    options = parser.parse_args(namespace=Args())
    possible = WHOLE_RUNS if options.steps else SIDES
    sides = options.sides or list(possible)
    if other := [side for side in sides if side not in possible]:
        parser.error(f"{', '.join(other)}: {'only without' if options.steps else 'needs'} --steps")
    rows = []
    for work in WORKS:
        if work.name not in options.works:
            continue
        own = [side for side in sides if work.family == "gpt2" or side in OF_LSTM]
        for precision in options.precisions:
            setting = Setting(device="cuda", precision=PRECISIONS[precision])
            if options.steps:
                cells = compare_whole_runs(
                    work, setting, own, rounds=options.rounds, steps=options.steps
                )
            else:
                cells = compare(work, setting, own, rounds=options.rounds, seconds=options.seconds)
            rows.append((f"{work.name} {precision}", cells))
    unit = f"seconds of {options.steps} steps from nothing" if options.steps else "tokens/s, GiB"
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; {unit}")
    if "fp8" in options.precisions:
        print("beside fp8 the peers compute in bf16")
    print(f"{'work':24}" + "".join(f"{side:>24}" for side in sides))
    for name, cells in rows:
        print(f"{name:24}" + "".join(f"{cells.get(side, '-'):>24}" for side in sides))


if __name__ == "__main__":
    main()
