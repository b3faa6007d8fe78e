"""Attempts that are tracked, and what W&B's own reader finds in its offline files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.reports import step
from trainer_app.core.performance import Performance
from trainer_app.core.run_files import Finished
from trainer_app.core.spec import TrainSpec
from trainer_app.log import JobLog
from trainer_app.settings import Tracking
from trainer_app.tracking.tracker import Tracker

RUN = "run-01k9v3m0e8xq6h7w2c4b5d8f9g"
SPEC = TrainSpec(
    model_size="tiny", corpus_sha256="0" * 64, corpus_path="a.txt", tags=("night", "two")
)
PERFORMANCE = Performance(
    tokens_per_sec=640.0, step_ms=100.0, flops_per_token=6, mfu=None, peak_memory_bytes=1 << 20
)
PATIENCE_SECONDS = 20.0  # for wandb's own process to start on a busy machine

Record = dict[str, object]


def tracker(
    tmp_path: Path,
    log: JobLog,
    *,
    enabled: bool = True,
    init_seconds: float = 60.0,
    close_seconds: float = PATIENCE_SECONDS,
    waiting: int = 100_000,
) -> Tracker:
    return Tracker(
        Tracking(enabled=enabled, project="stories", directory=tmp_path / "tracked"),
        log,
        run_id=RUN,
        spec=SPEC,
        memory=tmp_path / "runs" / RUN / "tracked.json",
        init_seconds=init_seconds,
        close_seconds=close_seconds,
        waiting=waiting,
    )


def finished(tmp_path: Path, *, steps: int, test_loss: float | None) -> Finished:
    return Finished(
        directory=tmp_path,
        spec=SPEC,
        steps=steps,
        batch_size=4,
        accumulation=1,
        epochs=2,
        early_stopped=True,
        final_loss=1.0,
        final_perplexity=math.e,
        loss_chain=None,
        best_val_loss=1.5,
        test_loss=test_loss,
        test_perplexity=None if test_loss is None else math.exp(test_loss),
        bits_per_byte=None,
        training_seconds=1.0,
        device="cpu",
        device_name="cpu",
        precision="fp32",
        threads=1,
        tokenizer_sha256="0" * 64,
        weights_sha256="0" * 64,
        versions={},
        loads_in_transformers=True,
    )


def records(tmp_path: Path) -> list[list[Record]]:
    """What each attempt wrote, oldest first, as ``wandb leet inspect`` reads it."""
    return [_read(file) for file in sorted(tmp_path.glob("tracked/wandb/offline-run-*/*.wandb"))]


def _read(file: Path) -> list[Record]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(attempt: Sequence[Record]) -> list[dict[str, object]]:
    """The rows of the curve, without what wandb adds itself but for ``_step``."""
    found = []
    for record in attempt:
        history = record.get("history")
        if isinstance(history, dict):
            item = history["item"]
            kept = {"_step", *(name for name in item if not name.startswith("_"))}
            found.append({name: item[name] for name in kept})
    return found


def one(attempt: Sequence[Record], kind: str) -> dict[str, object]:
    """The last record of a kind."""
    record = [entry for entry in attempt if entry["type"] == kind][-1].get(kind)
    assert isinstance(record, dict)
    return record


def exit_code(attempt: Sequence[Record]) -> object:
    """0: W&B was told that the run is finished."""
    return one(attempt, "exit")["exit_code"]


def warnings(tmp_path: Path) -> list[str]:
    log = tmp_path / "run.jsonl"  # there is none before its first line
    lines = log.read_text().splitlines() if log.exists() else []
    assert all(json.loads(line)["level"] == "warning" for line in lines)
    return [json.loads(line)["event"] for line in lines]


def only_warning(tmp_path: Path, log: JobLog) -> str:
    """What an attempt of one step is warned of."""
    with tracker(tmp_path, log) as tracked:
        tracked.on_steps([step(1)])
    [warning] = warnings(tmp_path)
    return warning


def told(tmp_path: Path) -> int:
    """The last step that W&B was given."""
    memory = tmp_path / "runs" / RUN / "tracked.json"
    logged: int = json.loads(memory.read_bytes())["logged"] if memory.exists() else 0
    return logged


def eventually(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
