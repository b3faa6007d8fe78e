"""Keeping processes alive, and ending them with all that they started."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from trainer_app.stack import supervisor as supervisors
from trainer_app.stack.output import Output
from trainer_app.stack.processes import Process, Role
from trainer_app.stack.supervisor import Supervisor

# Starts a child in a session of its own, says its pid, and ignores SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(300)
"""
# Starts a child in its own group and dies.
CARELESS = """
import subprocess
print("child", subprocess.Popen(["sleep", "300"]).pid, flush=True)
"""


class Stage:
    """A supervisor and what its processes print."""

    def __init__(self, logs: Path) -> None:
        self.printed = io.StringIO()
        self.supervisor = Supervisor(
            Output(self.printed, logs, ["one", "two"]), {**os.environ, "SHARED": "yes"}
        )

    def start(
        self,
        *command: str,
        name: str = "one",
        role: Role = Role.LIGHT,
        before_restart: Callable[[int], object] = lambda _refusals: None,
    ) -> Process:
        process = Process(name=name, role=role, command=command, environment={"OWN": name})
        self.supervisor.start(process, before_restart=before_restart)
        return process

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.printed.getvalue()
            self.supervisor.tick()
            time.sleep(0.02)

    def child(self) -> psutil.Process:
        """The process whose pid was printed last."""
        self.until(lambda: "child " in self.printed.getvalue())
        return psutil.Process(int(self.printed.getvalue().rpartition("child ")[2].split()[0]))

    def pid(self) -> int:
        [(_, pid)] = self.supervisor.pids()
        return pid


def rested(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(supervisors, "DRAIN_SECONDS", 0.5)
    found = Stage(tmp_path)
    yield found
    found.supervisor.stop(lambda: True)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_process_gets_the_stacks_environment_and_its_own(stage: Stage) -> None:
    stage.start("sh", "-c", "echo $SHARED $OWN; sleep 300")
    stage.until(lambda: "yes one" in stage.printed.getvalue())


def test_a_process_that_dies_is_started_again(stage: Stage) -> None:
    process = stage.start("sleep", "300")
    first = stage.pid()
    os.kill(first, signal.SIGKILL)
    stage.until(lambda: "one has ended (SIGKILL)" in stage.printed.getvalue())
    stage.until(lambda: stage.supervisor.alive(process))
    assert stage.pid() != first


def test_a_process_that_keeps_dying_is_started_less_and_less_often(stage: Stage) -> None:
    stage.start("sh", "-c", "exit 3")
    stage.until(lambda: stage.supervisor.most_failures() == ("one", 3))
    waits = [line.rpartition(" in ")[2] for line in stage.printed.getvalue().splitlines()]
    assert waits == ["0.5 s", "1 s", "2 s"]
    assert "has ended (exit code 3)" in stage.printed.getvalue()


def test_a_long_life_is_forgiven(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "STABLE_SECONDS", 0.0)
    monkeypatch.setattr(supervisors, "FIRST_DELAY_SECONDS", 0.01)
    process = stage.start("sleep", "300")
    for _ in range(3):
        os.kill(stage.pid(), signal.SIGKILL)
        stage.until(lambda: not stage.supervisor.alive(process))
        stage.until(lambda: stage.supervisor.alive(process))
    assert stage.supervisor.most_failures() == ("one", 1)


def test_what_a_process_needs_is_mended_before_it_starts_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "FIRST_DELAY_SECONDS", 0.01)
    told: list[int] = []
    stage.start("sh", "-c", "exit 3", before_restart=told.append)
    stage.until(lambda: len(told) == 3)
    assert told == [1, 2, 3]


def test_a_process_that_is_killed_did_not_refuse_to_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "FIRST_DELAY_SECONDS", 0.01)
    told: list[int] = []
    stage.start("sh", "-c", "kill -9 $$", before_restart=told.append)
    stage.until(lambda: len(told) == 3)
    assert told == [0, 0, 0]


def test_a_command_that_is_not_there_is_said_and_tried_again(stage: Stage) -> None:
    stage.start("/no/such/program")
    assert "one cannot be started" in stage.printed.getvalue()
    stage.until(lambda: stage.supervisor.most_failures()[1] == 2)


def test_what_a_dead_process_left_in_its_group_dies_too(stage: Stage) -> None:
    stage.start(sys.executable, "-c", CARELESS)
    child = stage.child()
    stage.until(lambda: gone(child))


def test_stopping_ends_a_process_that_will_not_and_its_children_of_other_sessions(
    stage: Stage,
) -> None:
    stage.start(sys.executable, "-c", STUBBORN)
    child, parent = stage.child(), psutil.Process(stage.pid())
    stage.supervisor.stop(lambda: False)
    assert gone(parent)
    assert gone(child)


def test_a_process_that_outlives_its_kill_is_named_and_not_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "KILLED_SECONDS", 0.2)
    monkeypatch.setattr(supervisors, "kill_group", lambda _pid: None)  # as in a kernel that hangs
    stage.start(sys.executable, "-c", STUBBORN)
    stage.child()
    stubborn = stage.supervisor._children[0].running
    assert stubborn is not None
    stage.start("sleep", "300", name="two")
    try:
        stage.supervisor.stop(lambda: False)
    finally:
        stubborn.kill()
        stubborn.wait()
    [said] = [line for line in stage.printed.getvalue().splitlines() if "is left" in line]
    assert said.endswith(f"process {stubborn.pid} was killed, and is left: it does not end")


def test_a_process_that_complies_is_not_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "DRAIN_SECONDS", 60.0)
    stage.start("sleep", "300")
    stage.start("true", name="two")
    started = time.monotonic()
    stage.supervisor.stop(lambda: False)
    assert time.monotonic() - started < 10


def test_a_process_that_has_just_ended_is_no_trouble(stage: Stage) -> None:
    process = stage.start("true")
    deadline = time.monotonic() + 10
    while stage.supervisor.alive(process):
        assert time.monotonic() < deadline
    stage.supervisor.stop(lambda: False)


def test_hurry_ends_the_waiting(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "DRAIN_SECONDS", 60.0)
    stage.start(sys.executable, "-c", STUBBORN)
    stage.child()
    started = time.monotonic()
    stage.supervisor.stop(lambda: True)
    assert time.monotonic() - started < 10


def test_the_broker_goes_last(stage: Stage) -> None:
    says_when = (
        "trap 'sleep 0.3; echo {} ends; exit' TERM; echo {} runs; while :; do sleep 0.05; done"
    )
    stage.start("sh", "-c", says_when.replace("{}", "broker"), name="one", role=Role.BROKER)
    stage.start("sh", "-c", says_when.replace("{}", "worker"), name="two", role=Role.WORKER)
    stage.until(lambda: stage.printed.getvalue().count("runs") == 2)
    stage.supervisor.stop(lambda: False)
    deadline = time.monotonic() + 5
    while stage.printed.getvalue().count("ends") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # the threads that read what they print
    printed = stage.printed.getvalue()
    assert -1 < printed.index("worker ends") < printed.index("broker ends")


def test_a_dropped_process_is_not_started_again(stage: Stage) -> None:
    process = stage.start("sleep", "300")
    stage.supervisor.drop(process)
    stage.supervisor.tick()
    assert stage.supervisor.pids() == []


@pytest.mark.parametrize("role", [Role.HOUSEKEEPING, Role.BROKER])
def test_a_housekeeper_that_stays_stopped_is_replaced_and_a_broker_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    monkeypatch.setattr(supervisors, "FROZEN_SECONDS", 0.2)
    stage.start("sleep", "300", role=role)
    first = stage.pid()
    os.kill(first, signal.SIGSTOP)
    stage.until(lambda: rested(first))

    if role is Role.HOUSEKEEPING:
        stage.until(lambda: stage.printed.getvalue().count("killed") == 1)
        stage.until(lambda: bool(stage.supervisor.pids()) and stage.pid() != first)
    else:
        over = time.monotonic() + 1
        stage.until(lambda: time.monotonic() > over)
        assert stage.pid() == first


def test_a_housekeeper_that_was_stopped_for_a_while_is_left_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "FROZEN_SECONDS", 2.0)
    stage.start("sleep", "300", role=Role.HOUSEKEEPING)
    first = stage.pid()
    for _ in range(4):
        os.kill(first, signal.SIGSTOP)
        stage.until(lambda: rested(first))
        over = time.monotonic() + 0.6
        while time.monotonic() < over:
            stage.supervisor.tick()
            time.sleep(0.02)
        os.kill(first, signal.SIGCONT)
        stage.until(lambda: not rested(first))
        stage.supervisor.tick()

    assert stage.pid() == first
