"""Processes started ahead: when there is one, what becomes of it, and what it becomes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.spare import Spare, SpareContext, Spares, spares
from trainer_app.settings import Settings

ROOT = Path(__file__).parents[2]
MUCH = 2**40  # bytes
SECONDS = 90.0  # for anything to happen on a busy machine


class Clock:
    """Stands still until a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Iterator[Spares]:
    kept = Spares(free_bytes=lambda: MUCH, clock=clock)
    yield kept
    kept.take().end()


def kill(pid: int) -> None:
    """Kill a child of this process; what it ended with is left to whoever asks."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def waiting() -> list[int]:
    """The pids of the spares of this process."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "tasks.spare" in " ".join(child.cmdline())
    ]


def test_a_spare_is_started_a_while_after_the_last_one_was_taken(
    kept: Spares, clock: Clock
) -> None:
    kept.take().end()

    clock.now += 19.0
    kept.keep(after_seconds=20.0)
    assert waiting() == []

    clock.now += 1.0
    kept.keep(after_seconds=20.0)
    [pid] = waiting()

    clock.now += 20.0
    kept.keep(after_seconds=20.0)
    assert waiting() == [pid]


def test_a_spare_that_has_died_is_replaced_and_not_at_once(kept: Spares, clock: Clock) -> None:
    clock.now += 20.0
    kept.keep(after_seconds=20.0)
    [pid] = waiting()
    kill(pid)

    clock.now += 19.0
    kept.keep(after_seconds=20.0)
    assert waiting() == []

    clock.now += 1.0
    kept.keep(after_seconds=20.0)
    [other] = waiting()
    assert other != pid


def test_the_spare_after_one_that_took_over_comes_sooner(kept: Spares, clock: Clock) -> None:
    first = kept.take()
    second = kept.take()
    clock.now += 4.0
    kept.keep(after_seconds=20.0)
    assert set(waiting()) == {first.process.pid, second.process.pid}

    clock.now += 1.0
    kept.keep(after_seconds=20.0)
    assert len(waiting()) == 3

    for taken in (first, second):
        taken.end()


def test_a_spare_that_a_signal_has_stopped_is_not_handed_out(kept: Spares, clock: Clock) -> None:
    clock.now += 20.0
    kept.keep(after_seconds=20.0)
    [pid] = waiting()
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != "stopped":
        time.sleep(0.01)

    taken = kept.take()

    assert taken.process.pid != pid
    assert not psutil.pid_exists(pid)
    taken.end()


def test_no_spare_is_started_where_memory_is_short(clock: Clock) -> None:
    kept = Spares(free_bytes=lambda: 2**30, clock=clock)
    clock.now += 20.0

    kept.keep(after_seconds=20.0)

    assert waiting() == []


@pytest.mark.slow
def test_a_spare_becomes_a_child_that_has_the_files_of_its_parent() -> None:
    spares.keep(after_seconds=0.0)
    [pid] = waiting()
    context = SpareContext()
    ours, theirs = context.Pipe()

    child = context.Process(target=theirs.send, args=("from the child",))
    child.start()

    assert child.pid == pid
    assert ours.poll(SECONDS)
    assert ours.recv() == "from the child"
    child.join(int(SECONDS))
    assert child.exitcode == 0


@pytest.mark.slow
def test_a_child_is_started_though_its_spare_has_died() -> None:
    spares.keep(after_seconds=0.0)
    [pid] = waiting()
    kill(pid)

    child = SpareContext().Process(target=sys.exit, args=(7,))
    child.start()
    child.join()

    assert child.pid != pid
    assert child.exitcode == 7


@pytest.mark.slow
def test_a_spare_ends_with_its_worker() -> None:
    spare = Spare(trains=True)

    spare.close()

    assert spare.process.wait(SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("queues", "trains"), [(["trainer.here.cpu", "trainer"], True), (["trainer.light"], False)]
)
def test_a_process_of_a_worker_that_trains_has_the_compiler_at_hand_and_no_other(
    worker: Settings, queues: list[str], trains: bool
) -> None:
    program = (
        "import socket, sys\n"
        "from tasks import spare, worker\n"
        "from tasks.app import app\n"
        "app.amqp.queues.select(sys.argv[1:])\n"
        "worker.tell_spares_what_for()\n"
        "ours, theirs = socket.socketpair()\n"
        "ours.close()\n"
        "spare.main(theirs.detach(), trains=spare.spares.train)\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *queues],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout.splitlines()[-1] == f"True {trains}"


_POOL = """
import sys, time
from kombu.asynchronous import Hub, set_event_loop
from tasks.app import app
from tasks.spare import TaskPool

def turn_until(turn, told):
    give_up_at = time.monotonic() + 90
    while pool.unheard() != told:
        if time.monotonic() > give_up_at:
            sys.exit(f"{set(pool.unheard())}: never {set(told)}")
        turn()

hub = Hub()
set_event_loop(hub)
pool = TaskPool(1, app=app, threads=False, initargs=(app, "train-0@here"))
pool.start()
children = frozenset(pool.info["processes"])
turn_until(lambda: time.sleep(0.02), children)  # it says that it is up
pool.register_with_event_loop(hub)
loop = hub.create_loop()
turn_until(lambda: next(loop), frozenset())
pool.terminate()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_a_worker_knows_who_has_told_what_it_has_not_read() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _POOL],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
