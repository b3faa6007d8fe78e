"""What ends the processes when their supervisor cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trainer_app.stack import guard as guards
from trainer_app.stack.guard import Guard, end_groups

SUPERVISOR = """
import os, sys, time
from pathlib import Path
from trainer_app.stack.output import Output
from trainer_app.stack.processes import Process, Role
from trainer_app.stack.supervisor import Supervisor
supervisor = Supervisor(Output(open(os.devnull, "w"), Path(sys.argv[1]), []), os.environ)
for name, role in (("broker", Role.BROKER), ("light", Role.LIGHT)):
    supervisor.start(Process(name=name, role=role, command=("sleep", "300")))
print(*(pid for _, pid in supervisor.pids()), flush=True)
time.sleep(300)
"""


def until_gone(pid: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_processes_of_a_killed_supervisor_end_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        supervisor.kill()
    assert len(pids) == 2
    for pid in pids:
        until_gone(pid)


def test_a_group_that_is_gone_is_left_alone() -> None:
    guard = Guard()
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        guard.watch(bystander.pid, last=False)
        guard.forget(bystander.pid)
        guard.close()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_guard_that_was_killed_stops_nobody() -> None:
    guard = Guard()
    guard._process.kill()
    guard._process.wait()
    for _ in range(3):
        guard.watch(1, last=False)
    guard.close()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        end_groups([stubborn.pid], 0.3)
        assert stubborn.wait(5) == -signal.SIGKILL


def test_ending_what_is_gone_is_no_error() -> None:
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    end_groups([ended.pid], 1.0)


def test_it_reads_to_the_end_and_ends_what_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    read_end, write_end = os.pipe()
    os.write(write_end, f"first {child.pid}\n".encode())
    os.close(write_end)
    monkeypatch.setattr(guards, "_GRACE_SECONDS", 0.2)
    with os.fdopen(read_end) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        guards.main()
    assert child.wait(5) == -signal.SIGTERM
