"""What may happen to a stack, as a table: each fault with how often it comes among the others."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import psycopg
import redis

from benchmarks.chaos_arena import LEASE_SECONDS, Arena, child_of
from trainer_app.errors import Unavailable
from trainer_app.stack.guard import kill_group

# Whether there was something to do it to.
Do = Callable[[Arena, random.Random], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that may happen."""

    kind: str  # kills, pauses, outages, stops
    weight: float
    do: Do


def _kill(process: psutil.Process | None) -> bool:
    if process is None:
        return False
    with suppress(psutil.Error):
        process.kill()
        return True
    return False


def _a_worker(arena: Arena, rng: random.Random) -> psutil.Process | None:
    workers = arena.workers()
    return rng.choice(workers) if workers else None


def _kill_child(arena: Arena, rng: random.Random) -> bool:
    worker = _a_worker(arena, rng)
    return worker is not None and _kill(child_of(worker))


def _kill_worker(arena: Arena, rng: random.Random) -> bool:
    return _kill(_a_worker(arena, rng))


def _kill_worker_group(arena: Arena, rng: random.Random) -> bool:
    worker = _a_worker(arena, rng)
    if worker is None:
        return False
    kill_group(worker.pid)
    return True


def _kill_role(role: str) -> Do:
    return lambda arena, _rng: _kill(arena.one(role))


def _kill_supervisor(arena: Arena, _rng: random.Random) -> bool:
    return _kill(arena.supervisor())


def _kill_everything(arena: Arena, _rng: random.Random) -> bool:
    """As when the machine loses its power, but for what is in its memory."""
    arena.thaw()
    # What is killed late may start others in the meantime: until none is left.
    while processes := arena.all():
        for process in processes:
            _kill(process)
        time.sleep(0.05)
    return True


def _stop_stack(arena: Arena, _rng: random.Random) -> bool:
    arena.stop_stack()
    return True


def _pause(
    find: Callable[[Arena, random.Random], list[psutil.Process]],
    *,
    leases: tuple[float, float],
) -> Do:
    """Pause for between so many and so many leases."""

    def do(arena: Arena, rng: random.Random) -> bool:
        processes = find(arena, rng)
        if processes:
            arena.freeze(processes, LEASE_SECONDS * rng.uniform(*leases))
        return bool(processes)

    return do


def _child(arena: Arena, rng: random.Random) -> list[psutil.Process]:
    worker = _a_worker(arena, rng)
    child = None if worker is None else child_of(worker)
    return [] if child is None else [child]


def _worker_and_children(arena: Arena, rng: random.Random) -> list[psutil.Process]:
    return _with_children(_a_worker(arena, rng))


def _with_children(process: psutil.Process | None) -> list[psutil.Process]:
    try:
        return [] if process is None else [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _busy_child(arena: Arena, rng: random.Random) -> list[psutil.Process]:
    child = arena.busy_child(rng)
    return [] if child is None else [child]


def _busy_worker_and_children(arena: Arena, rng: random.Random) -> list[psutil.Process]:
    return _with_children(arena.busy_worker(rng))


def _role(role: str) -> Callable[[Arena, random.Random], list[psutil.Process]]:
    return lambda arena, _rng: _with_children(arena.one(role))


def _cut_off_broker(arena: Arena, _rng: random.Random) -> bool:
    return _tell_broker(arena, lambda client: client.client_kill_filter(_type="normal"))


def _wipe_broker(arena: Arena, _rng: random.Random) -> bool:
    return _tell_broker(arena, lambda client: client.flushall())


def _tell_broker(arena: Arena, what: Callable[[redis.Redis], object]) -> bool:
    try:
        url = arena.state["redis_url"]
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            what(client)
    except (redis.RedisError, Unavailable):
        return False
    return True


def _lock_database(arena: Arena, rng: random.Random) -> bool:
    """Nobody else can write, and on PostgreSQL not read either, for longer than a lease."""
    try:
        url = arena.state["database_url"]
    except Unavailable:
        return False
    seconds = rng.uniform(1, 3 * LEASE_SECONDS)
    threading.Thread(target=_hold_lock, args=(url, seconds), daemon=True).start()
    return True


def _hold_lock(url: str, seconds: float) -> None:
    if not url.startswith("sqlite"):
        plain = url.replace("postgresql+psycopg://", "postgresql://")
        with suppress(psycopg.Error), psycopg.connect(plain) as connection:
            connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)
        return
    path = url.removeprefix("sqlite:///")
    with (
        closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection,
        suppress(sqlite3.OperationalError),
    ):
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)


def _damage_checkpoint(arena: Arena, rng: random.Random) -> bool:
    """Flip a bit of, cut, zero or delete a file of the newest checkpoint; kill who may be at it."""
    folders = sorted(
        (arena.root / "runs").glob("*/checkpoints/step-*"), key=lambda path: path.stat().st_mtime
    )
    if not folders:
        return False
    try:
        _damage(rng.choice(sorted(folders[-1].iterdir())), rng)
    except (OSError, IndexError):  # it was removed in the meantime
        return False
    for worker in arena.workers():
        _kill(child_of(worker))
    return True


def _damage(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    match rng.randrange(4):
        case 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[len(data) // 2 :]
        case 2:
            data[:] = bytes(len(data))
        case _:
            file.unlink()
            return
    # The file may be a hard link of another checkpoint's: both are damaged, as by a bad disk.
    with file.open("r+b") as opened:
        opened.truncate(len(data))
        opened.write(data)


_SHORT: Final = (0.1, 1.0)
_LONG: Final = (1.5, 4.0)  # another attempt has begun when it ends
_ANY: Final = (0.1, 2.5)

FAULTS: Final[Mapping[str, Fault]] = {
    "child killed": Fault(kind="kills", weight=6, do=_kill_child),
    "worker killed": Fault(kind="kills", weight=4, do=_kill_worker),
    "worker's group killed": Fault(kind="kills", weight=3, do=_kill_worker_group),
    "API killed": Fault(kind="kills", weight=2, do=_kill_role("api")),
    "broker killed": Fault(kind="kills", weight=2, do=_kill_role("broker")),
    "housekeeping killed": Fault(kind="kills", weight=2, do=_kill_role("housekeeping")),
    "inference killed": Fault(kind="kills", weight=0.5, do=_kill_role("inference")),
    "supervisor killed": Fault(kind="kills", weight=0.7, do=_kill_supervisor),
    "everything killed": Fault(kind="kills", weight=0.7, do=_kill_everything),
    "checkpoint damaged": Fault(kind="damages", weight=2, do=_damage_checkpoint),
    "child paused": Fault(kind="pauses", weight=2, do=_pause(_child, leases=_SHORT)),
    "worker paused": Fault(kind="pauses", weight=2, do=_pause(_worker_and_children, leases=_SHORT)),
    "child asleep past its lease": Fault(
        kind="pauses", weight=3, do=_pause(_busy_child, leases=_LONG)
    ),
    "worker asleep past its lease": Fault(
        kind="pauses", weight=8, do=_pause(_busy_worker_and_children, leases=_LONG)
    ),
    "API paused": Fault(kind="pauses", weight=1, do=_pause(_role("api"), leases=_ANY)),
    "broker paused": Fault(kind="pauses", weight=2, do=_pause(_role("broker"), leases=_ANY)),
    "housekeeping paused": Fault(
        kind="pauses", weight=1, do=_pause(_role("housekeeping"), leases=_ANY)
    ),
    "broker's clients cut off": Fault(kind="outages", weight=2, do=_cut_off_broker),
    "broker wiped": Fault(kind="outages", weight=2, do=_wipe_broker),
    "database locked": Fault(kind="outages", weight=2, do=_lock_database),
    "stack stopped": Fault(kind="stops", weight=0.7, do=_stop_stack),
}


def resume_all(arena: Arena) -> None:
    """SIGCONT to all that sleeps, orphans included."""
    arena.thaw()
    for process in arena.all():
        with suppress(psutil.Error):
            process.resume()
