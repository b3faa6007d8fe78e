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

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from backends.contracts import ModelConfig
from backends.models.gpt2 import GPT2, GPT2Shape
from trainer_app.core.batches import Batches
from trainer_app.core.device import DataLoading, fresh_accelerator, use_threads
from trainer_app.core.feed import Feed
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.optim import make_optimizer
from trainer_app.core.spec import TrainSpec
from trainer_app.core.step import TrainingStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One size of GPT-2 and of its batches."""

    name: str
    layers: int
    width: int
    heads: int
    seq_len: int
    vocab_size: int
    batch_size: int


WORKS = (
    Work(
        name="4 layers, 256 wide, T=256, V=4096, B=8",
        layers=4,
        width=256,
        heads=4,
        seq_len=256,
        vocab_size=4096,
        batch_size=8,
    ),
    Work(
        name="2 layers, 128 wide, T=128, V=256, B=8",
        layers=2,
        width=128,
        heads=2,
        seq_len=128,
        vocab_size=256,
        batch_size=8,
    ),
)

Step = Callable[[int], object]


@contextmanager
def ours(work: Work) -> Iterator[Step]:
    """The engine's own step, its data path included."""
    spec = TrainSpec(batch_size=work.batch_size, max_seq_len=work.seq_len, corpus_sha256="")
    random = np.random.default_rng(0)
    ids = random.integers(0, work.vocab_size, 1 << 20).astype(np.uint16)
    batches = Batches(
        ids, seq_len=work.seq_len, batch_size=work.batch_size, accumulation=1, seed=spec.seed
    )
    accelerator = fresh_accelerator("cpu", "fp32", 1)
    model = GPT2(
        ModelConfig(
            family="gpt2", size="custom", vocab_size=work.vocab_size, max_seq_len=work.seq_len
        ),
        GPT2Shape(width=work.width, layers=work.layers, heads=work.heads),
    )
    model.initialise()
    prepared, optimizer = accelerator.prepare(LanguageModelLoss(model), make_optimizer(model, spec))
    prepared.train()
    with Feed(batches, device="cpu", loading=DataLoading(workers=0, pin_memory=False)) as feed:
        yield TrainingStep(
            accelerator=accelerator,
            model=prepared,
            optimizer=optimizer,
            feed=feed,
            spec=spec,
            total_steps=1 << 30,
        )


@contextmanager
def huggingface(work: Work) -> Iterator[Step]:
    """The loop of the tutorials: GPT2LMHeadModel, AdamW, clip_grad_norm_."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=work.vocab_size,
            n_positions=work.seq_len,
            n_embd=work.width,
            n_layer=work.layers,
            n_head=work.heads,
        )
    )
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

    yield step


def tokens_per_second(step: Step, work: Work, seconds: float, first: int) -> tuple[float, int]:
    """Steps for about so long; their speed, and the number of the step after them."""
    step(first)  # warm the caches that the other side has filled
    began = time.perf_counter()
    number = first + 1
    while time.perf_counter() - began < seconds:
        step(number)
        number += 1
    steps = number - first - 1
    elapsed = time.perf_counter() - began
    return steps * work.batch_size * work.seq_len / elapsed, number


def compare(work: Work, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens a second of each side, round by round."""
    figures: dict[str, list[float]] = {"ours": [], "huggingface": []}
    with ours(work) as our_step, huggingface(work) as their_step:
        sides = {"ours": our_step, "huggingface": their_step}
        numbers = dict.fromkeys(sides, 0)
        for _ in range(rounds):
            for name, step in sides.items():
                speed, numbers[name] = tokens_per_second(step, work, seconds, numbers[name])
                figures[name].append(speed)
    return figures


def main() -> None:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    arguments = parser.parse_args()
    threads = use_threads(arguments.threads)
    rows = []
    for work in WORKS:
        figures = compare(work, arguments.rounds, arguments.seconds)
        ratios = [a / b for a, b in zip(figures["ours"], figures["huggingface"], strict=True)]
        row = {name: statistics.median(speeds) for name, speeds in figures.items()}
        row["ratio"] = statistics.median(ratios)
        print(json.dumps({"work": work.name, "threads": threads, "unit": "tokens/s", **row}))
        rows.append((work.name, row))
    print(f"\n{'work':42} {'ours':>10} {'HF loop':>10} {'ratio':>6}")
    for name, row in rows:
        print(f"{name:42} {row['ours']:10,.0f} {row['huggingface']:10,.0f} {row['ratio']:6.2f}")


if __name__ == "__main__":
    main()
