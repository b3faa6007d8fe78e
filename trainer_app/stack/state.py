"""``DATA/run/stack.json``: where a running stack is, for scripts, and for the next start."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import psutil

from trainer_app.core.files import write_atomically
from trainer_app.stack.guard import end_groups
from trainer_app.stack.processes import Process, Role

_CREATED_TOLERANCE_SECONDS = 1.0  # a process's start time is known to a hundredth of a second


class Pids(TypedDict):
    """One pid, or null for a broker that is not ours; a list where there may be several."""

    api: int | None
    broker: int | None
    worker: list[int]
    inference: list[int]
    light: list[int]
    housekeeping: list[int]
    flower: int | None  # null where it was not asked for


class Started(TypedDict):
    """A process, told apart from a later one of the same pid by when it started."""

    name: str
    pid: int
    created: float


class StackState(TypedDict):
    """What stack.json holds; its mode is 0600, for ``redis_url`` has the password in it."""

    api_url: str
    flower_url: str | None  # null where it was not asked for
    redis_url: str
    database_url: str
    pid: int  # of the supervisor: SIGTERM stops the stack
    pids: Pids
    processes: list[Started]


def state_file(data_root: Path) -> Path:
    """Where the state of the stack on this data root is written."""
    return data_root / "run" / "stack.json"


def write_state(
    data_root: Path,
    running: Sequence[tuple[Process, int]],
    *,
    api_url: str,
    flower_url: str | None = None,
    redis_url: str,
    database_url: str,
) -> None:
    """Write the state of a running stack, in place of what was there."""

    def pids(role: Role) -> list[int]:
        return [pid for process, pid in running if process.role is role]

    state = StackState(
        api_url=api_url,
        flower_url=flower_url,
        redis_url=redis_url,
        database_url=database_url,
        pid=os.getpid(),
        pids=Pids(
            api=next(iter(pids(Role.API)), None),
            broker=next(iter(pids(Role.BROKER)), None),
            worker=pids(Role.WORKER),
            inference=pids(Role.INFERENCE),
            light=pids(Role.LIGHT),
            housekeeping=pids(Role.HOUSEKEEPING),
            flower=next(iter(pids(Role.FLOWER)), None),
        ),
        processes=[
            Started(name=process.name, pid=pid, created=created)
            for process, pid in running
            if (created := _created(pid)) is not None
        ],
    )
    text = json.dumps(state, indent=2)
    write_atomically(state_file(data_root), text.encode() + b"\n", mode=0o600)


def read_state(data_root: Path) -> StackState | None:
    """The state of the stack on this data root; None where none runs or ever ran."""
    try:
        state: StackState = json.loads(state_file(data_root).read_bytes())
    except FileNotFoundError:
        return None
    return state


def remove_state(data_root: Path) -> None:
    """Say that this process's stack no longer runs; another's state stays."""
    state = read_state(data_root)
    if state is not None and state["pid"] == os.getpid():
        state_file(data_root).unlink()


def end_leftovers(data_root: Path, *, grace_seconds: float) -> list[str]:
    """End what a killed supervisor left running, and return the processes' names.

    To be called with the data root's lock held: a stack that still lives holds it.
    """
    state = read_state(data_root)
    if state is None:
        return []
    left = [entry for entry in state["processes"] if _is_same(entry)]
    end_groups([entry["pid"] for entry in left], grace_seconds)
    state_file(data_root).unlink()
    return [entry["name"] for entry in left]


def _is_same(entry: Started) -> bool:
    created = _created(entry["pid"])
    return created is not None and abs(created - entry["created"]) < _CREATED_TOLERANCE_SECONDS


def _created(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
