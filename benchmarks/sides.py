"""Who trains in the training benchmarks: this engine, HuggingFace's Trainer and plain loops.

All on the same work, on a CPU or a GPU, without dropout but that of char_lstm, which its peer has,
too. Needs torch, transformers and accelerate alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Final, ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
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
from trainer_app.core.device import ResolvedDevice, ResolvedPrecision, keep_freed_memory
from trainer_app.core.observer import Silent
from trainer_app.core.spec import CompileChoice, TrainSpec
from trainer_app.core.step_log import StepLog

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WINDOWS: Final = 1 << 16  # in an epoch of the Trainer, which keeps a list of them
Step = Callable[[int], object]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model and its batches."""

    name: str
    family: str = "gpt2"
    size: str = "small"  # of char_lstm
    width: int = 0  # of gpt2
    layers: int = 0
    heads: int = 0
    vocab_size: int
    seq_len: int
    batch_size: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.seq_len

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a side computes and in what numbers."""

    device: ResolvedDevice
    precision: ResolvedPrecision

    @property
    def of_peers(self) -> ResolvedPrecision:
        """What the loops and the Trainer compute in: they have no fp8."""
        return "bf16" if self.precision == "fp8" else self.precision

    @property
    def warm_steps(self) -> int:
        """Before a side is measured: it has compiled, chosen and recorded by then."""
        return 8 if self.device == "cuda" else 2

    @property
    def burst(self) -> int:
        """Steps between two looks at the clock, for which a GPU must be waited for."""
        return 4 if self.device == "cuda" else 1

    def wait(self) -> None:
        """Return when the device has done all that it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def engine_spec(work: Work, choice: CompileChoice) -> TrainSpec:
    """The work as the engine is told it."""
    return TrainSpec(
        batch_size=work.batch_size,
        max_seq_len=work.seq_len,
        corpus_sha256="",
        torch_compile=choice,
        deterministic=False,
    )


@contextmanager
def ours(work: Work, setting: Setting, choice: CompileChoice) -> Iterator[Step]:
    """The engine's own step, its data path included; ``choice``: on or off."""
    keep_freed_memory()  # as ``fit`` does
    with engine_step(
        work.model(),
        engine_spec(work, choice),
        device=setting.device,
        precision=setting.precision,
    ) as step:
        yield step


class LSTMLoop(nn.Module):
    """The loops' model for char_lstm: torch's layers (cuDNN's on a GPU), as anyone calls them."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@contextmanager
def plain_loop(
    work: Work, setting: Setting, *, fused: bool = True, dropout: float = 0.0
) -> Iterator[Step]:
    """The loop of the tutorials, with autocast; ``fused``: with torch's fused AdamW."""
    if work.family == "gpt2":
        model: nn.Module = huggingface_model(work, setting.device, dropout=dropout)
    else:
        model = LSTMLoop(work.model()).to(setting.device)

    def loss_of(ids_BT: torch.Tensor) -> torch.Tensor:
        result = model(input_ids=ids_BT, labels=ids_BT)
        loss: torch.Tensor = result if isinstance(result, torch.Tensor) else result.loss
        return loss

    yield usual_step(work, setting, model, loss_of, fused=fused)


@contextmanager
def lean_loop(work: Work, setting: Setting, *, compiled: bool) -> Iterator[Step]:
    """The same loop with a lean model; ``compiled``: all of it through torch's compiler."""
    if work.family == "gpt2":
        model: nn.Module = LeanGPT(
            vocab_size=work.vocab_size,
            seq_len=work.seq_len,
            width=work.width,
            layers=work.layers,
            heads=work.heads,
        )
    else:
        model = LSTMLoop(work.model())
    model.to(setting.device)
    called: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = model
    if compiled:
        called = torch.compile(model)
    yield usual_step(work, setting, model, lambda ids_BT: called(ids_BT, ids_BT), fused=True)


def usual_step(
    work: Work,
    setting: Setting,
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    fused: bool,
) -> Step:
    """Forward, backward, clipping and AdamW, call by call, on one batch that is there already."""
    device, precision = setting.device, setting.of_peers
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, weight_decay=0.1, fused=True if fused else None
    )
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    ids_BT = torch.randint(0, work.vocab_size, (work.batch_size, work.seq_len), device=device)

    def step(_: int) -> object:
        with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
            loss = loss_of(ids_BT)
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    return step


def huggingface_model(
    work: Work, device: ResolvedDevice, *, dropout: float = 0.0
) -> GPT2LMHeadModel:
    """transformers' GPT-2 of this shape, ready to train."""
    config = GPT2Config(
        vocab_size=work.vocab_size,
        n_positions=work.seq_len,
        n_embd=work.width,
        n_layer=work.layers,
        n_head=work.heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,  # its own are beyond a small vocabulary
        eos_token_id=0,
    )
    with torch.device(device):
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # the one it takes anyway, but not without a warning
    model.train()
    return model


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Random windows of tokens, ready in memory."""

    def __init__(self, work: Work) -> None:
        self._ids = torch.randint(0, work.vocab_size, (1 << 10, work.seq_len))

    def __len__(self) -> int:
        return WINDOWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_T = self._ids[index % len(self._ids)]
        return {"input_ids": ids_T, "labels": ids_T}


class Clock(TrainerCallback):
    """Ends a training once it has been measured for so long."""

    def __init__(self, setting: Setting, seconds: float) -> None:
        self._setting = setting
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
        done = state.global_step - self._setting.warm_steps
        if done < 0 or done % self._setting.burst:
            return
        self._setting.wait()
        now = time.perf_counter()
        if done == 0:
            self._began = now
            return
        self.steps_a_second = done / (now - self._began)
        control.should_training_stop = now - self._began > self._seconds


def train_by_trainer(
    work: Work, setting: Setting, *, compiled: bool, max_steps: int, clock: Clock | None = None
) -> None:
    """HuggingFace's Trainer with its best flags, data loading included."""
    on_gpu = setting.device == "cuda"
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=not on_gpu,
            per_device_train_batch_size=work.batch_size,
            max_steps=max_steps,
            learning_rate=5e-4,
            weight_decay=0.1,
            optim="adamw_torch_fused",
            bf16=setting.of_peers == "bf16",
            fp16=setting.of_peers == "fp16",
            torch_compile=compiled,
            # windows that are in memory cost a CPU less than to have them sent by processes
            dataloader_num_workers=4 if on_gpu else 0,
            dataloader_persistent_workers=on_gpu,
            dataloader_pin_memory=on_gpu,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=huggingface_model(work, setting.device),
            args=arguments,
            train_dataset=Windows(work),
            callbacks=[] if clock is None else [clock],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for figures
        trainer.train()


def trainer_speed(work: Work, setting: Setting, seconds: float, *, compiled: bool) -> float:
    """Tokens a second of HuggingFace's Trainer."""
    clock = Clock(setting, seconds)
    train_by_trainer(work, setting, compiled=compiled, max_steps=1 << 20, clock=clock)
    return clock.steps_a_second * work.tokens


def speed(step: Step, work: Work, setting: Setting, seconds: float) -> float:
    """Tokens a second over so many seconds of steps after the warm ones."""
    number = setting.warm_steps
    setting.wait()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(setting.burst):
            step(number)
            number += 1
        setting.wait()
    elapsed = time.perf_counter() - began
    return (number - setting.warm_steps) * work.tokens / elapsed


Make = Callable[[Work, Setting], AbstractContextManager[Step]]
Speed = Callable[[Work, Setting, float], float]


def stepped(make: Make) -> Speed:
    """The speed of a side that is made of steps."""

    def measured(work: Work, setting: Setting, seconds: float) -> float:
        with make(work, setting) as step:
            for number in range(setting.warm_steps):
                step(number)
            return speed(step, work, setting, seconds)

    return measured


def whole(make: Make) -> Callable[[Work, Setting, int], None]:
    """So many steps of a side that is made of steps."""

    def run(work: Work, setting: Setting, steps: int) -> None:
        with make(work, setting) as step:
            for number in range(steps):
                step(number)

    return run


def our_whole_run(work: Work, setting: Setting, steps: int) -> None:
    """So many steps as the engine's loop takes them, which chooses whether and when to compile."""
    keep_freed_memory()
    spec = engine_spec(work, "auto")
    with engine_step(
        work.model(),
        spec,
        device=setting.device,
        precision=setting.precision,
        total_steps=steps,
    ) as step:
        log = StepLog(
            observer=Silent(),
            total_steps=steps,
            steps_per_epoch=steps,
            tokens_per_step=work.tokens,
            samples_per_step=work.batch_size,
            logging_steps=spec.logging_steps,
            scaled=setting.precision == "fp16",
        )
        log.restart_clock()
        for number in range(steps):
            if step.is_to_compile(number, log.steady_step_seconds):
                log.flush()
                step.compile(number, lambda: None)
                log.time_anew()
            result = step(number)
            assert result is not None  # nobody asks it to stop
            log.add(number + 1, result, notable=False)
        log.flush()


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What the function returns in a fresh process, which holds nothing of any before it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def listed(known: Collection[str], separator: str = ",") -> Callable[[str], list[str]]:
    """A type of argument: some of the known names."""

    def parse(text: str) -> list[str]:
        names = text.split(separator)
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)}: known are {separator.join(known)}"
            )
        return names

    return parse
