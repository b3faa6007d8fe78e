"""Where a running stack is, and what a killed one left."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

from trainer_app.stack.processes import Process, Role
from trainer_app.stack.state import (
    end_leftovers,
    read_state,
    remove_state,
    state_file,
    write_state,
)


def process(name: str, role: Role) -> Process:
    return Process(name=name, role=role, command=("sleep", "300"))


def write(root: Path, running: list[tuple[Process, int]]) -> None:
    (root / "run").mkdir(exist_ok=True)
    write_state(
        root,
        running,
        api_url="http://127.0.0.1:8000",
        redis_url="redis://:secret@127.0.0.1:6379/0",
        database_url="sqlite:////data/trainer.db",
    )


def test_it_says_where_all_is(tmp_path: Path) -> None:
    pid = os.getpid()
    roles = [(process(role, role), pid) for role in Role]
    write(tmp_path, [*roles, (process("worker-1", Role.WORKER), pid)])
    state = read_state(tmp_path)
    assert state is not None
    assert state["api_url"] == "http://127.0.0.1:8000"
    assert state["pid"] == pid
    assert state["pids"] == {
        "api": pid,
        "broker": pid,
        "worker": [pid, pid],
        "inference": [pid],
        "light": [pid],
        "housekeeping": [pid],
        "flower": pid,
    }


def test_a_broker_of_somebody_elses_has_no_pid(tmp_path: Path) -> None:
    write(tmp_path, [(process("api", Role.API), os.getpid())])
    state = read_state(tmp_path)
    assert state is not None
    assert state["pids"]["broker"] is None


def test_the_brokers_password_is_for_the_owner_alone(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert stat.S_IMODE(state_file(tmp_path).stat().st_mode) == 0o600


def test_no_state_means_no_stack(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write(tmp_path, [])
    remove_state(tmp_path)
    remove_state(tmp_path)
    assert read_state(tmp_path) is None
    assert end_leftovers(tmp_path, grace_seconds=1) == []


def test_what_a_killed_stack_left_is_ended_and_nobody_else(tmp_path: Path) -> None:
    left = subprocess.Popen(["sleep", "300"], start_new_session=True)
    later = subprocess.Popen(["sleep", "300"], start_new_session=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    running = [("left", left), ("later", later), ("ended", ended)]
    write(tmp_path, [(process(name, Role.LIGHT), child.pid) for name, child in running])
    # A pid that has come to belong to another process: it started at another time.
    state = json.loads(state_file(tmp_path).read_text())
    for item in state["processes"]:
        item["created"] -= 60 * (item["name"] == "later")
    state_file(tmp_path).write_text(json.dumps(state))
    try:
        assert end_leftovers(tmp_path, grace_seconds=5) == ["left"]
        assert left.wait(5) != 0
        assert later.poll() is None
        assert read_state(tmp_path) is None
    finally:
        later.kill()
        later.wait()


def test_a_process_that_has_ended_is_not_listed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    write(tmp_path, [(process("ended", Role.LIGHT), ended.pid)])
    state = read_state(tmp_path)
    assert state is not None
    assert state["processes"] == []
