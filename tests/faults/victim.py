"""A stack that a test breaks, and what the test does to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

from trainer_app.client import Client
from trainer_app.replies import Run
from trainer_app.stack.launch import RunningStack

RunTest = Callable[[Run], bool]

ENVIRONMENT: Final = {
    "APP__THREADS": "1",
    "JOBS__LEASE_SEC": "10",
    "JOBS__BEAT_SEC": "1",
    "JOBS__CHECKPOINT_SEC": "0.5",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A stack that is to be broken, and a client of it."""

    stack: RunningStack
    client: Client
    corpus_file_id: str

    def start_run(self, *, steps: int = 100_000) -> str:
        """A run that goes on until it is stopped, or for so many steps."""
        fields = {
            "model_family": "char_lstm",
            "model_size": "tiny",
            "corpus_file_id": self.corpus_file_id,
            "max_seq_len": 32,
            "batch_size": 4,
            "max_steps": steps,
            "num_epochs": 1_000,
            "eval_steps": 100_000,
            "test_split_ratio": 0.01,
            "logging_steps": 1,
        }
        return self.client.train_run(fields)["run_id"]

    def until(self, run_id: str, holds: Callable[[Run], bool], *, seconds: float) -> Run:
        """The run once ``holds`` says so; fails the test when it never does."""
        give_up_at = time.monotonic() + seconds
        while not holds(run := self.client.get_run(run_id)):
            assert time.monotonic() < give_up_at, run
            time.sleep(0.1)
        return run

    def checkpoint(self, run_id: str, *, beyond: int = 0) -> int:
        """Wait for a checkpoint beyond a step, and return its step."""
        folder = self.stack.data_root / "runs" / run_id / "checkpoints"
        give_up_at = time.monotonic() + 60
        while True:
            steps = [int(path.name.split("-")[1]) for path in folder.glob("step-*")]
            newest = max(steps, default=0)
            if newest > beyond:
                return newest
            assert time.monotonic() < give_up_at, steps
            time.sleep(0.1)

    def worker(self) -> psutil.Process:
        """The training worker's parent."""
        return psutil.Process(self.stack.state["pids"]["worker"][0])

    def child(self) -> psutil.Process:
        """The process that trains."""
        children = self.worker().children()
        return max(children, key=lambda child: child.memory_info().rss)


def runs_as(attempt: int, beyond: int = 0) -> RunTest:
    """Whether an attempt trains, beyond a step."""
    return lambda run: (
        run["attempt"] == attempt and run["status"] == "running" and (run["step"] or 0) > beyond
    )
