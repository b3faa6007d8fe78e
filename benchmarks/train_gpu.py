"""Training on a GPU: this engine against HuggingFace's Trainer and plain loops, on the same work.

    python -m benchmarks.train_gpu [--rounds 3] [--seconds 2] [--works gpt2-124m,...]
        [--precisions bf16,fp16]

All sides take turns in one process, so that whatever else the machine does hits all. Prints a JSON
line for each figure, then a table; figures are medians of the rounds, in tokens a second of whole
steps (forward, backward, clipping, AdamW). What was compiled, and what was waited for before the
first step, stands beside. No side has dropout. Needs torch, transformers and accelerate alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from backends.contracts import CausalModel, ModelConfig
from backends.loading import model_family
from backends.models.gpt2 import DESIGN, gpt2_shape
from backends.models.transformer import Transformer
from benchmarks.engine import engine_step
from benchmarks.lean_gpt import LeanGPT
from trainer_app.core.device import ResolvedPrecision
from trainer_app.core.spec import CompileChoice, TrainSpec

WARM_STEPS: Final = 8  # before a side is measured: it has compiled, chosen and recorded by then
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model and its batches."""

    name: str
    family: str = "gpt2"
    size: str = "small"
    width: int = 0  # of gpt2
    layers: int = 0
    heads: int = 0
    vocab_size: int
    seq_len: int
    batch_size: int

    def model(self) -> CausalModel:
        """Fresh, on the CPU."""
        torch.manual_seed(0)
        config = ModelConfig(
            family=self.family,
            size=self.size,
            vocab_size=self.vocab_size,
            max_seq_len=self.seq_len,
        )
        if self.family != "gpt2":
            return model_family(self.family).build(config)
        shape = gpt2_shape(width=self.width, layers=self.layers, heads=self.heads)
        model = Transformer(config, DESIGN, shape)
        model.initialise()
        return model


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
Step = Callable[[int], object]
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


@contextmanager
def ours(work: Work, precision: ResolvedPrecision, choice: CompileChoice) -> Iterator[Step]:
    """The engine's own step, its data path included."""
    spec = TrainSpec(
        batch_size=work.batch_size,
        max_seq_len=work.seq_len,
        corpus_sha256="",
        torch_compile=choice,
        deterministic=False,
    )
    with engine_step(work.model(), spec, device="cuda", precision=precision) as step:
        yield step


class LSTMLoop(nn.Module):
    """The loop's model for char_lstm: the same layers on cuDNN, called as anyone would."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@contextmanager
def plain_loop(work: Work, precision: ResolvedPrecision) -> Iterator[Step]:
    """The loop of the tutorials, with autocast and the fused AdamW."""
    if work.family == "gpt2":
        model: nn.Module = huggingface_model(work)
    else:
        model = LSTMLoop(work.model()).cuda()

    def loss_of(ids_BT: torch.Tensor) -> torch.Tensor:
        result = model(input_ids=ids_BT, labels=ids_BT)
        loss: torch.Tensor = result if isinstance(result, torch.Tensor) else result.loss
        return loss

    yield usual_step(work, precision, model, loss_of)


@contextmanager
def lean_loop(work: Work, precision: ResolvedPrecision) -> Iterator[Step]:
    """The same loop with a lean model, all of it through torch's compiler."""
    model = LeanGPT(
        vocab_size=work.vocab_size,
        seq_len=work.seq_len,
        width=work.width,
        layers=work.layers,
        heads=work.heads,
    ).cuda()
    compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(model)
    yield usual_step(work, precision, model, lambda ids_BT: compiled(ids_BT, ids_BT))


def usual_step(
    work: Work,
    precision: ResolvedPrecision,
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
) -> Step:
    """Forward, backward, clipping and AdamW, call by call, on one batch that is there already."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    ids_BT = torch.randint(0, work.vocab_size, (work.batch_size, work.seq_len), device="cuda")

    def step(_: int) -> object:
        with torch.autocast("cuda", dtype=DTYPES[precision], enabled=precision != "fp32"):
            loss = loss_of(ids_BT)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    return step


def huggingface_model(work: Work) -> GPT2LMHeadModel:
    """transformers' model of this shape, on the GPU."""
    with TemporaryDirectory() as folder:  # the shape as the engine exports it
        model_family("gpt2").save(work.model(), Path(folder))
        return GPT2LMHeadModel(GPT2Config.from_pretrained(folder)).cuda()


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Random windows of tokens, ready in memory."""

    def __init__(self, work: Work) -> None:
        self._ids = torch.randint(0, work.vocab_size, (1 << 12, work.seq_len))

    def __len__(self) -> int:
        return 1 << 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_T = self._ids[index % len(self._ids)]
        return {"input_ids": ids_T, "labels": ids_T}


class Clock(TrainerCallback):
    """Ends a training once it has been measured for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = 0.0
        self.steps_a_second = 0.0

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> None:
        if state.global_step < WARM_STEPS:
            return
        if state.global_step % 4 == 0:
            torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == WARM_STEPS:
                self._began = now
                return
            self.steps_a_second = (state.global_step - WARM_STEPS) / (now - self._began)
            control.should_training_stop = now - self._began > self._seconds


def trainer_speed(
    work: Work, precision: ResolvedPrecision, seconds: float, *, compiled: bool
) -> float:
    """Tokens a second of HuggingFace's Trainer with its best flags."""
    clock = Clock(seconds)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.batch_size,
            max_steps=1 << 20,
            learning_rate=5e-4,
            weight_decay=0.1,
            optim="adamw_torch_fused",
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            torch_compile=compiled,
            dataloader_num_workers=4,
            dataloader_pin_memory=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(
            model=huggingface_model(work),
            args=arguments,
            train_dataset=Windows(work),
            callbacks=[clock],
        ).train()
    return clock.steps_a_second * work.batch_size * work.seq_len


def speed(step: Step, work: Work, seconds: float) -> float:
    """Tokens a second over so many seconds of steps after the warm ones."""
    number = WARM_STEPS
    torch.cuda.synchronize()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            step(number)
            number += 1
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - began
    return (number - WARM_STEPS) * work.batch_size * work.seq_len / elapsed


def stepped(
    make: Callable[[Work, ResolvedPrecision], AbstractContextManager[Step]],
) -> Callable[[Work, ResolvedPrecision, float], float]:
    """The speed of a side that is made of steps."""

    def measured(work: Work, precision: ResolvedPrecision, seconds: float) -> float:
        with make(work, precision) as step:
            for number in range(WARM_STEPS):
                step(number)
            return speed(step, work, seconds)

    return measured


SIDES: Final[dict[str, Callable[[Work, ResolvedPrecision, float], float]]] = {
    "ours": stepped(partial(ours, choice="off")),
    "ours, compiled": stepped(partial(ours, choice="on")),
    "plain loop": stepped(plain_loop),
    "lean loop, compiled": stepped(lean_loop),
    "HF Trainer": partial(trainer_speed, compiled=False),
    "HF Trainer, compiled": partial(trainer_speed, compiled=True),
}


def one_round(side: str, work: Work, precision: ResolvedPrecision, seconds: float) -> Figures:
    """One side, once, with nothing left of the one before."""
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    tokens = SIDES[side](work, precision, seconds)
    return Figures(
        tokens_per_sec=tokens,
        seconds_before=time.perf_counter() - began - seconds,
        gib=torch.cuda.max_memory_reserved() / 2**30,
    )


def main() -> None:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--works", default=",".join(work.name for work in WORKS))
    parser.add_argument("--precisions", default="bf16,fp16")
    parser.add_argument("--sides", default="", help="default: all")
    arguments = parser.parse_args()
    sides = arguments.sides.split(";") if arguments.sides else list(SIDES)
    rows = []
    for work in WORKS:
        if work.name not in arguments.works.split(","):
            continue
        rows += [
            compare(work, precision, sides, arguments.rounds, arguments.seconds)
            for precision in arguments.precisions.split(",")
        ]
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; tokens/s, GiB")
    print(f"{'work':24}" + "".join(f"{side:>24}" for side in sides))
    for name, figures in rows:
        cells = [
            f"{figures[side].tokens_per_sec:,.0f} {figures[side].gib:5.1f}"
            if side in figures
            else "-"
            for side in sides
        ]
        print(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells))


def compare(
    work: Work, precision: str, sides: Sequence[str], rounds: int, seconds: float
) -> tuple[str, dict[str, Figures]]:
    """The medians of each side over the rounds."""
    wanted: ResolvedPrecision = PRECISIONS[precision]
    name = f"{work.name} {precision}"
    seen: dict[str, list[Figures]] = {}
    for _ in range(rounds):
        for side in sides:
            if work.family != "gpt2" and side not in {"ours", "plain loop"}:
                continue
            seen.setdefault(side, []).append(one_round(side, work, wanted, seconds))
    medians = {}
    for side, figures in seen.items():
        medians[side] = Figures(
            tokens_per_sec=statistics.median(f.tokens_per_sec for f in figures),
            seconds_before=statistics.median(f.seconds_before for f in figures),
            gib=max(f.gib for f in figures),
        )
        line = {"work": work.name, "precision": precision, "side": side, **asdict(medians[side])}
        print(json.dumps(line), flush=True)
    return name, medians


if __name__ == "__main__":
    main()
