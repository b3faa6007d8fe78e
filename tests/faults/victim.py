"""A stack that a test breaks, and what the test does to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import httpx
import psutil
import redis

from trainer_app.client import Client
from trainer_app.queue import WORKER_KEY
from trainer_app.replies import Run
from trainer_app.stack.guard import kill_group
from trainer_app.stack.launch import RunningStack, running_stack, start_worker

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
    environment: Mapping[str, str]  # of the stack
    corpus_file_id: str

    def start_run(self, *, steps: int = 100_000, **fields: object) -> str:
        """A run that goes on until it is stopped, or for so many steps."""
        body = {
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
        return self.client.train_run(body | fields)["run_id"]

    def tokenizer(self) -> str:
        """A trained tokenizer, for the families that need one."""
        fields = {"method": "bpe", "vocab_size": 300, "corpus_file_id": self.corpus_file_id}
        tokenizer_id = self.client.train_tokenizer(fields)["tokenizer_id"]
        reply = self.client.wait_for_tokenizer(tokenizer_id, timeout=120)
        assert reply["status"] == "completed", reply
        return tokenizer_id

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

    def log(self, run_id: str) -> list[dict[str, object]]:
        """What the run's log holds, oldest first."""
        path = self.stack.data_root / "logs" / f"{run_id}.jsonl"
        whole, _, _ = path.read_text().rpartition("\n")  # the last line may be being written
        return [json.loads(line) for line in whole.splitlines()]

    def told(
        self, run_id: str, holds: Callable[[dict[str, object]], bool], *, seconds: float = 30
    ) -> dict[str, object]:
        """The first entry of the run's log that ``holds``, once there is one."""
        give_up_at = time.monotonic() + seconds
        while True:
            log = self.log(run_id)
            if found := next((entry for entry in log if holds(entry)), None):
                return found
            assert time.monotonic() < give_up_at, log
            time.sleep(0.1)

    def events(self, run_id: str) -> list[str]:
        """The sentences of the run's log."""
        return [str(entry["event"]) for entry in self.log(run_id)]

    @contextmanager
    def again(self) -> Iterator[Victim]:
        """The stack, which has ended, started once more on what it left."""
        with (
            running_stack(self.stack.data_root, environment=self.environment) as stack,
            Client(stack.api_url) as client,
        ):
            yield replace(self, stack=stack, client=client)

    @contextmanager
    def second_worker(self) -> Iterator[psutil.Process]:
        """One more worker, once it is ready."""
        started = start_worker(self.stack, 1, environment=self.environment)
        try:
            give_up_at = time.monotonic() + 60
            with redis.Redis.from_url(self.stack.state["redis_url"]) as client:
                while not list(client.scan_iter(match=f"{WORKER_KEY}train-1@*")):
                    assert time.monotonic() < give_up_at
                    time.sleep(0.2)
            yield psutil.Process(started.pid)
        finally:
            kill_group(started.pid)
            started.wait(10)

    def worker(self) -> psutil.Process:
        """The training worker's parent."""
        return psutil.Process(self.stack.state["pids"]["worker"][0])

    def child(self) -> psutil.Process:
        """The process that trains."""
        return child_of(self.worker())


def child_of(worker: psutil.Process) -> psutil.Process:
    """The process that trains for a worker, as soon as there is one."""
    return children_of(worker, at_least=1)[0]


def children_of(worker: psutil.Process, *, at_least: int) -> list[psutil.Process]:
    """The processes of a worker's pool: the one that trains, and its spare if there is one."""
    give_up_at = time.monotonic() + 60
    while True:
        found = []
        for child in worker.children():
            with suppress(psutil.NoSuchProcess):  # a zombie, or gone in the meantime
                # Starting them has a helper of its own beside them.
                if "tasks.spare" in " ".join(child.cmdline()):
                    found.append((child.create_time(), child.pid, child))
        if len(found) >= at_least:
            return [child for _, _, child in sorted(found, key=lambda one: one[:2])]
        assert time.monotonic() < give_up_at, worker
        time.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    """Whether nothing is left of a process but what its parent has not collected yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def becomes(http: httpx.Client, path: str, status: int, *, seconds: float) -> None:
    """Wait until an address answers like this."""
    give_up_at = time.monotonic() + seconds
    while (answer := http.get(path)).status_code != status:
        assert time.monotonic() < give_up_at, answer.text
        time.sleep(0.2)


def assert_one_at_a_time(log: list[dict[str, object]]) -> None:
    """No attempt began twice, and none told of steps once there was a later one."""
    began = Counter(entry["attempt"] for entry in log if entry["event"] == "started")
    assert set(began.values()) == {1}, began
    newest = 0
    for entry in log:
        attempt = int(str(entry["attempt"]))
        if entry["event"] == "started":
            newest = attempt
        if entry["event"] in {"step", "checkpoint", "evaluation"}:
            assert attempt == newest, entry


def runs_as(attempt: int, beyond: int = 0) -> RunTest:
    """Whether an attempt trains, beyond a step."""
    return lambda run: (
        run["attempt"] == attempt and run["status"] == "running" and (run["step"] or 0) > beyond
    )
