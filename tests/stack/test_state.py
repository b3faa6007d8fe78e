"""Where a running stack is, and what a killed one left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_app.stack import broker as brokers
from trainer_app.stack.processes import Process, Role
from trainer_app.stack.state import (
    end_leftovers,
    is_damaged,
    is_of_another_root,
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
        del item["birth"]  # as the version before wrote it
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


def test_what_was_left_is_known_by_when_it_began_however_the_clock_was_set_since(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as left:
        write(tmp_path, [(process("left", Role.LIGHT), left.pid)])
        state = json.loads(state_file(tmp_path).read_text())
        [item] = state["processes"]
        item["created"] -= 3600
        state_file(tmp_path).write_text(json.dumps(state))
        assert end_leftovers(tmp_path, grace_seconds=5) == ["left"]
        assert left.wait(5) != 0


def test_a_later_process_of_the_same_pid_is_nobody_that_was_left(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as later:
        write(tmp_path, [(process("later", Role.LIGHT), later.pid)])
        state = json.loads(state_file(tmp_path).read_text())
        state["processes"][0]["birth"] += "1"
        state_file(tmp_path).write_text(json.dumps(state))
        assert end_leftovers(tmp_path, grace_seconds=5) == []
        assert later.poll() is None
        later.kill()


def test_a_folder_of_the_state_that_was_removed_is_made_again(tmp_path: Path) -> None:
    write(tmp_path, [])
    shutil.rmtree(tmp_path / "run")
    write(tmp_path, [])
    assert read_state(tmp_path) is not None


def test_a_copy_of_a_data_root_leaves_the_stack_of_the_first_alone(tmp_path: Path) -> None:
    root, copy = tmp_path / "data", tmp_path / "copy"
    root.mkdir()
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as worker:
        write(root, [(process("worker", Role.WORKER), worker.pid)])
        shutil.copytree(root, copy)
        assert is_of_another_root(copy)
        assert end_leftovers(copy, grace_seconds=1) == []
        assert worker.poll() is None

        root.rename(tmp_path / "moved")  # the same one, elsewhere
        assert not is_of_another_root(tmp_path / "moved")
        assert end_leftovers(tmp_path / "moved", grace_seconds=5) == ["worker"]


@pytest.fixture
def left_worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a stack on tmp_path/data that was killed with its guard."""
    root = tmp_path / "data"
    root.mkdir()
    command, environment = ["sleep", "300"], os.environ | {"APP__DATA_ROOT": str(root)}
    with subprocess.Popen(command, env=environment, start_new_session=True) as left:
        write(root, [(process("worker", Role.WORKER), left.pid)])
        yield left
        left.kill()


def as_the_version_before_wrote_it(root: Path) -> None:
    state = json.loads(state_file(root).read_text())
    del state["root"]
    state_file(root).write_text(json.dumps(state))


def test_what_a_stack_of_the_version_before_left_is_ended(
    tmp_path: Path, left_worker: subprocess.Popen[bytes]
) -> None:
    root, link = tmp_path / "data", tmp_path / "link"
    as_the_version_before_wrote_it(root)
    link.symlink_to(root)

    assert not is_of_another_root(link)
    assert end_leftovers(link, grace_seconds=1) == ["worker"]
    assert left_worker.wait(5) == -signal.SIGTERM


def test_the_broker_that_a_stack_of_the_version_before_left_is_ended(tmp_path: Path) -> None:
    broker = brokers.configure(tmp_path)
    with subprocess.Popen(broker.command, stdout=subprocess.DEVNULL) as left:
        try:
            brokers.wait_until_it_answers(broker.url, timeout_seconds=10)
            write(tmp_path, [(process("broker", Role.BROKER), left.pid)])
            as_the_version_before_wrote_it(tmp_path)

            assert end_leftovers(tmp_path, grace_seconds=1) == ["broker"]
            assert left.wait(5) == 0
        finally:
            left.kill()


def test_a_copy_of_a_data_root_of_the_version_before_ends_nothing(
    tmp_path: Path, left_worker: subprocess.Popen[bytes]
) -> None:
    as_the_version_before_wrote_it(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")

    assert is_of_another_root(tmp_path / "copy")
    assert end_leftovers(tmp_path / "copy", grace_seconds=1) == []
    assert left_worker.poll() is None


def test_what_was_left_on_a_data_root_that_was_copied_away_and_back_is_ended(
    tmp_path: Path, left_worker: subprocess.Popen[bytes]
) -> None:
    root, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(root, away)
    root.rename(tmp_path / "old")  # not removed: its number could be given to the next folder
    away.rename(root)

    assert not is_of_another_root(root)
    assert end_leftovers(root, grace_seconds=1) == ["worker"]
    assert left_worker.wait(5) == -signal.SIGTERM


def test_a_process_that_has_ended_is_not_listed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    write(tmp_path, [(process("ended", Role.LIGHT), ended.pid)])
    state = read_state(tmp_path)
    assert state is not None
    assert state["processes"] == []


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b"null",
    b"[]",
    b"{}",
    b'{"api_url": "http://127.0.0.1:8000"}',
]


def edited(root: Path, **changes: object) -> None:
    write(root, [])
    state = json.loads(state_file(root).read_text())
    state_file(root).write_text(json.dumps({**state, **changes}))


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_counts_as_none_and_goes_with_the_stack(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, [])
    assert not is_damaged(tmp_path)
    state_file(tmp_path).write_bytes(data)
    assert is_damaged(tmp_path)
    assert read_state(tmp_path) is None
    assert end_leftovers(tmp_path, grace_seconds=1) == []
    remove_state(tmp_path)
    assert not state_file(tmp_path).exists()
    assert not is_damaged(tmp_path)


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 1.5, "1", None])
def test_what_is_no_process_is_never_ended(tmp_path: Path, pid: object) -> None:
    edited(tmp_path, processes=[{"name": "api", "pid": pid, "created": 0.0}])
    assert is_damaged(tmp_path)
    assert end_leftovers(tmp_path, grace_seconds=1) == []


def test_the_state_of_another_stack_stays(tmp_path: Path) -> None:
    edited(tmp_path, pid=os.getpid() + 1)
    remove_state(tmp_path)
    assert state_file(tmp_path).exists()


FAMILY = """
import os, signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", 0))
os.fork()
os.write(1, b"%d\\n" % listener.getsockname()[1])  # in one piece, for both write
time.sleep(300)
"""


def test_the_port_of_what_is_ended_by_force_is_free_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as left:
        assert left.stdout is not None
        ports = {int(left.stdout.readline()) for _ in range(2)}
        write(tmp_path, [(process("api", Role.API), left.pid)])
        assert end_leftovers(tmp_path, grace_seconds=0.2) == ["api"]
        with socket.create_server(("127.0.0.1", ports.pop())):
            pass
        assert left.wait(5) == -signal.SIGKILL
