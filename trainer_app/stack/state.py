"""``DATA/run/stack.json``: where a running stack is, for scripts, and for the next start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NotRequired, TypedDict, TypeGuard

from trainer_app.core.files import write_atomically
from trainer_app.pids import birth, created, descendants, lives
from trainer_app.stack.data_root import identity, is_served_by
from trainer_app.stack.guard import end_groups
from trainer_app.stack.processes import Process, Role

_CREATED_TOLERANCE_SECONDS = 1.0  # a process's start time is known to a hundredth of a second
_KILLED_SECONDS: Final = 5.0  # for the system to clear away what has got a SIGKILL
_LARGEST_PID: Final = 2**22


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
    # In seconds since the epoch, which a clock that is set moves: the version before knew no other.
    created: float
    birth: NotRequired[str]


class StackState(TypedDict):
    """What stack.json holds; its mode is 0600, for ``redis_url`` has the password in it."""

    api_url: str
    flower_url: str | None  # null where it was not asked for
    redis_url: str
    database_url: str
    # Which data root: a copy of it has the same stack.json. The version before did not say.
    root: NotRequired[str]
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

    file = state_file(data_root)
    file.parent.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it
    state = StackState(
        api_url=api_url,
        flower_url=flower_url,
        redis_url=redis_url,
        database_url=database_url,
        root=identity(data_root),
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
            Started(name=process.name, pid=pid, created=began, birth=born)
            for process, pid in running
            if (born := birth(pid)) is not None and (began := created(pid)) is not None
        ],
    )
    text = json.dumps(state, indent=2)
    write_atomically(file, text.encode() + b"\n", mode=0o600)


def read_state(data_root: Path) -> StackState | None:
    """The state of the stack on this data root; None where none runs or ever ran.

    A damaged file counts as none: the data root's lock tells whether a stack lives.
    """
    try:
        return _read(data_root)
    except ValueError:
        return None


def is_damaged(data_root: Path) -> bool:
    """Whether there is a stack.json that tells nothing: empty, cut off, or edited."""
    try:
        _read(data_root)
    except ValueError:
        return True
    return False


def is_of_another_root(data_root: Path) -> bool:
    """Whether stack.json names what lives and serves another data root, which was copied here."""
    state = read_state(data_root)
    return state is not None and any(
        lives(entry["pid"]) and not _serves(entry, state, data_root) for entry in _left(state)
    )


def remove_state(data_root: Path) -> None:
    """Say that this process's stack no longer runs; another's state stays.

    A damaged file goes as well: no stack but this one can live here.
    """
    state = read_state(data_root)
    if is_damaged(data_root) if state is None else state["pid"] == os.getpid():
        state_file(data_root).unlink()


def end_leftovers(data_root: Path, *, grace_seconds: float) -> list[str]:
    """End what a killed supervisor left running, and return the processes' names.

    What serves another data root, of which this is a copy, goes on.

    To be called with the data root's lock held: a stack that still lives holds it. What they
    listened on is free then.
    """
    state = read_state(data_root)
    if state is None:
        return []
    left = [entry for entry in _left(state) if _serves(entry, state, data_root)]
    leaders = [entry["pid"] for entry in left]
    started = [child.pid for leader in leaders for child in descendants(leader)]
    end_groups(leaders, grace_seconds)
    _wait_until_gone([*leaders, *started])
    state_file(data_root).unlink()
    return [entry["name"] for entry in left]


def _left(state: StackState) -> list[Started]:
    """What is there still of what stack.json names."""
    return [entry for entry in state["processes"] if _is_same(entry)]


def _serves(entry: Started, state: StackState, data_root: Path) -> bool:
    # All of them, where stack.json was written here. It was not where the data root was copied away
    # and back, and the version before did not say: then each is asked.
    return state.get("root") == identity(data_root) or is_served_by(entry["pid"], data_root)


def _read(data_root: Path) -> StackState | None:
    """What stack.json says; raises ValueError where it says nothing."""
    try:
        found: object = json.loads(state_file(data_root).read_bytes())
    except FileNotFoundError:
        return None
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not _is_state(found):
        raise ValueError("not the state of a stack")
    return found


def _is_state(found: object) -> TypeGuard[StackState]:
    """Whether the fields are there that a stack is found and ended by."""
    if not isinstance(found, dict):
        return False
    urls = (found.get(name) for name in ("api_url", "redis_url", "database_url"))
    processes = found.get("processes")
    return (
        all(isinstance(url, str) for url in urls)
        and _is_pid(found.get("pid"))
        and isinstance(found.get("pids"), dict)
        and isinstance(processes, list)
        and all(map(_is_started, processes))
    )


def _is_started(found: object) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and _is_pid(found.get("pid"))
        and isinstance(found.get("created"), float)
        and isinstance(found.get("birth"), str | None)
    )


def _is_pid(found: object) -> bool:
    # A signal to 0 or to a negative number would reach whole groups.
    return isinstance(found, int) and 0 < found <= _LARGEST_PID


def _wait_until_gone(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + _KILLED_SECONDS
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_same(entry: Started) -> bool:
    if (born := entry.get("birth")) is not None:
        return born == birth(entry["pid"])
    began = created(entry["pid"])
    return began is not None and abs(began - entry["created"]) < _CREATED_TOLERANCE_SECONDS
