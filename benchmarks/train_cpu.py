"""Training on a CPU: this engine against the plain HuggingFace loop, on the same work.

    python -m benchmarks.train_cpu [--rounds 5] [--seconds 8]

The two take turns, so that whatever else the machine does hits both. Prints a JSON line for each
figure, then a table; figures are medians of the rounds, in tokens a second of whole steps
(forward, backward, clipping, AdamW), batches included on this engine's side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from backends.contracts import ModelConfig
from backends.loading import model_family
from benchmarks.engine import engine_step
from trainer_app.core.device import keep_freed_memory, use_threads
from trainer_app.core.spec import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A size of GPT-2 and its batches."""

    name: str
    size: str
    seq_len: int
    vocab_size: int
    batch_size: int

    @property
    def config(self) -> ModelConfig:
        """As the engine names it."""
        return ModelConfig(
            family="gpt2",
            size=self.size,
            vocab_size=self.vocab_size,
            max_seq_len=self.seq_len,
        )


WORKS: Final = (
    Work(
        name="4 layers, 256 wide, T=256, V=4096, B=8",
        size="mini",
        seq_len=256,
        vocab_size=4096,
        batch_size=8,
    ),
    Work(
        name="2 layers, 128 wide, T=128, V=256, B=8",
        size="tiny",
        seq_len=128,
        vocab_size=256,
        batch_size=8,
    ),
)
Step = Callable[[int], object]


@contextmanager
def ours(work: Work) -> Iterator[Step]:
    """The engine's own step, its data path included."""
    keep_freed_memory()
    spec = TrainSpec(
        batch_size=work.batch_size,
        max_seq_len=work.seq_len,
        corpus_sha256="",
        torch_compile="off",
    )
    with engine_step(model_family("gpt2").build(work.config), spec) as step:
        yield step


@contextmanager
def huggingface(work: Work) -> Iterator[Step]:
    """The loop of the tutorials: GPT2LMHeadModel, AdamW, clip_grad_norm_."""
    yield from_config(work, dropout=0.1)  # GPT2Config's default


@contextmanager
def huggingface_without_dropout(work: Work) -> Iterator[Step]:
    """The same loop, the model's dropouts switched off: exactly the engine's arithmetic."""
    yield from_config(work, dropout=0.0)


def from_config(work: Work, *, dropout: float) -> Step:
    """A step of transformers' GPT-2 of this size."""
    with TemporaryDirectory() as folder:  # the shape as the engine exports it
        family = model_family("gpt2")
        family.save(family.build(work.config), Path(folder))
        config = GPT2Config.from_pretrained(
            folder, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout
        )
    model = GPT2LMHeadModel(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    ids_BT = torch.randint(0, work.vocab_size, (work.batch_size, work.seq_len))

    def step(_: int) -> object:
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


SIDES: Final = {
    "ours": ours,
    "huggingface": huggingface,
    "huggingface_without_dropout": huggingface_without_dropout,
}


def serve(side: str, work: Work, threads: int, requests: Connection[float, float]) -> None:
    """Answer each number of seconds with the tokens a second of so long; 0 ends it."""
    use_threads(threads)
    with SIDES[side](work) as step:
        number = 0
        while seconds := requests.recv():
            step(number)  # warms the caches that the other side has filled
            first = number + 1
            number = first
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                step(number)
                number += 1
            elapsed = time.perf_counter() - began
            requests.send((number - first) * work.batch_size * work.seq_len / elapsed)


def compare(work: Work, rounds: int, seconds: float, threads: int) -> dict[str, list[float]]:
    """Tokens a second of each side, round by round; each side has a process of its own."""
    context = get_context("spawn")
    ends: dict[str, Connection[float, float]] = {}
    for side in SIDES:
        ends[side], far_end = context.Pipe()
        context.Process(target=serve, args=(side, work, threads, far_end), daemon=True).start()
    figures: dict[str, list[float]] = {side: [] for side in SIDES}
    for round_number in range(rounds + 1):
        for side, end in ends.items():
            end.send(seconds)
            speed = end.recv()
            if round_number:  # the first starts the process
                figures[side].append(speed)
    for end in ends.values():
        end.send(0)
    return figures


def main() -> None:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    arguments = parser.parse_args()
    rows = []
    for work in WORKS:
        figures = compare(work, arguments.rounds, arguments.seconds, arguments.threads)
        row = {side: statistics.median(speeds) for side, speeds in figures.items()}
        for side in list(SIDES)[1:]:
            ratios = [a / b for a, b in zip(figures["ours"], figures[side], strict=True)]
            row[f"ratio_to_{side}"] = statistics.median(ratios)
        print(json.dumps({"work": work.name, "unit": "tokens/s", **row}), flush=True)
        rows.append((work.name, row))
    titles = ("ours", "HF loop", "ratio", "no dropout", "ratio")
    print(f"\n{'work':42}" + "".join(f"{title:>12}" for title in titles))
    for name, row in rows:
        cells = [row["ours"]]
        for side in list(SIDES)[1:]:
            cells += [row[side], row[f"ratio_to_{side}"]]
        print(f"{name:42}" + "".join(f"{c:12,.0f}" if c > 99 else f"{c:12.2f}" for c in cells))


if __name__ == "__main__":
    main()
