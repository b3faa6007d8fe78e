"""The stack that is to be hurt, with one more worker: started, found, paused, started again."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from sqlalchemy import select

from trainer_app.errors import Unavailable
from trainer_app.stack.guard import kill_group
from trainer_app.stack.launch import RunningStack, start_stack, start_worker
from trainer_app.stack.state import StackState
from trainer_app.store.database import Database
from trainer_app.store.tables import JobKind, JobRow, Status

LEASE_SECONDS: Final = 5.0
SETTINGS: Final = {
    "APP__THREADS": "1",
    "JOBS__LEASE_SEC": str(LEASE_SECONDS),
    "JOBS__BEAT_SEC": "0.5",
    "JOBS__CHECKPOINT_SEC": "0.3",
    # Bad luck alone is to fail no run.
    "JOBS__MAX_CRASHES": "100",
    "CELERY__RETRY_MAX": "100",
    "CELERY__RETRY_INTERVALS_SEC": "1",
}
_MARKER: Final = "CHAOS_ARENA"  # in the environment of all that it starts
_WORKER: Final = 1  # the number of the further worker
_STARTS: Final = 3  # tries of a stack


class Arena:
    """One stack on one data root for as long as the block runs, whatever becomes of it."""

    def __init__(self, root: Path, *, database_url: str | None) -> None:
        self.root = root
        self._mark = secrets.token_hex(8)
        self._environment: dict[str, str | None] = {
            name: None
            for name in os.environ
            if "__" in name and not name.startswith("_")  # settings of whoever calls
        }
        self._environment |= SETTINGS | {_MARKER: self._mark}
        if database_url is not None:
            self._environment["DATABASE__URL"] = database_url
        self._frozen: list[tuple[float, list[psutil.Process]]] = []
        self._stack: RunningStack | None = None
        self._further: subprocess.Popen[bytes] | None = None
        self.api_url = ""

    def __enter__(self) -> Self:
        self.stand_up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.thaw()
        if self._further is not None:
            self._further.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._further.wait(35)
            kill_group(self._further.pid)
            self._further.wait()
        if self._stack is not None:
            self._stack.stop()

    @property
    def state(self) -> StackState:
        """What stack.json says; raises Unavailable while no stack runs."""
        assert self._stack is not None
        return self._stack.state

    def stand_up(self) -> None:
        """Start what does not run: the stack, which takes a while, and the further worker."""
        if self._stack is None or self._stack.process.poll() is not None:
            self._stack = self._started()
            self.api_url = self._stack.api_url
        if self._further is None or self._further.poll() is not None:
            if self._further is not None:
                kill_group(self._further.pid)
            with suppress(Unavailable):  # the supervisor was killed since
                self._further = start_worker(self._stack, _WORKER, environment=self._environment)

    def tend(self) -> None:
        """What is due at any time: wake what has slept enough, start what has died."""
        now = time.monotonic()
        for wake_at, processes in [*self._frozen]:
            if now >= wake_at:
                self._frozen.remove((wake_at, processes))
                _wake(processes)
        self.stand_up()

    def freeze(self, processes: list[psutil.Process], seconds: float) -> None:
        """SIGSTOP now, SIGCONT later."""
        for process in processes:
            with suppress(psutil.Error):
                process.suspend()
        self._frozen.append((time.monotonic() + seconds, processes))

    def thaw(self) -> None:
        """SIGCONT to all that sleeps."""
        while self._frozen:
            _wake(self._frozen.pop()[1])

    def stop_stack(self) -> None:
        """SIGTERM to the supervisor, and wait."""
        assert self._stack is not None
        self.thaw()
        self._stack.stop()

    def supervisor(self) -> psutil.Process | None:
        """The process of ``trainer up``."""
        assert self._stack is not None
        return _found(self._stack.process.pid)

    def workers(self) -> list[psutil.Process]:
        """The parents of the workers that train."""
        pids = [*self._listed("worker"), *([self._further.pid] if self._further else [])]
        return [process for pid in pids if (process := _found(pid)) is not None]

    def busy_child(self, rng: random.Random) -> psutil.Process | None:
        """A process that trains at this moment, as the database says; None: none does."""
        statement = select(JobRow.owner).where(
            JobRow.status == Status.RUNNING, JobRow.kind == JobKind.TRAIN
        )
        try:
            with (
                closing(Database(self.state["database_url"], wait_seconds=1.0)) as database,
                database.read() as connection,
            ):
                owners = connection.scalars(statement).all()
        except Unavailable:
            return None
        pids = sorted(int(owner.rpartition(":")[2]) for owner in owners if owner is not None)
        child = _found(rng.choice(pids)) if pids else None
        # The row may be of a process that has died, and its number somebody else's by now.
        return child if child is not None and self._is_ours(child) else None

    def busy_worker(self, rng: random.Random) -> psutil.Process | None:
        """The parent of such a process, while it has one."""
        child = self.busy_child(rng)
        if child is None:
            return None
        with suppress(psutil.Error):
            worker = child.parent()
            return worker if worker is not None and self._is_ours(worker) else None
        return None

    def one(self, role: str) -> psutil.Process | None:
        """A process of the stack by its name there."""
        return next((process for pid in self._listed(role) if (process := _found(pid))), None)

    def all(self) -> list[psutil.Process]:
        """All that the arena has started and that lives, orphans included."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(_MARKER) == self._mark
            )
        except psutil.Error:
            return False

    def _listed(self, role: str) -> list[int]:
        try:
            state = self.state
        except Unavailable:
            return []
        return [entry["pid"] for entry in state["processes"] if entry["name"].startswith(role)]

    def _started(self) -> RunningStack:
        for _ in range(_STARTS - 1):
            with suppress(Unavailable):
                return start_stack(self.root, environment=self._environment)
        return start_stack(self.root, environment=self._environment)


def child_of(worker: psutil.Process) -> psutil.Process | None:
    """The process that trains for a worker: the one with torch in it."""
    try:
        children = worker.children()
        return max(children, key=lambda child: child.memory_info().rss, default=None)
    except psutil.Error:
        return None


def _wake(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.resume()


def _found(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
