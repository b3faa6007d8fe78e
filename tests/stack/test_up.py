"""What stops ``trainer up`` before anything is started, and a whole stack from start to stop."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import IO

import httpx
import psutil
import pytest
import redis

from trainer_app.errors import SettingsError, Unavailable
from trainer_app.settings import Settings
from trainer_app.stack import launch as launches
from trainer_app.stack import up as ups
from trainer_app.stack.launch import RunningStack, running_stack, start_stack
from trainer_app.stack.output import Output
from trainer_app.stack.ports import free_port
from trainer_app.stack.processes import Process, Role
from trainer_app.stack.state import read_state, state_file, write_state
from trainer_app.stack.supervisor import Supervisor
from trainer_app.stack.up import api_url, locked_root, up

# The stack is to bring all that it needs, whatever this process's environment names.
OWN = dict.fromkeys(("DATABASE__URL", "REDIS__URL", "SECURITY__API_KEY", "API__HOST"))


def command(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``trainer up`` as a user calls it, for what ends at once."""
    return subprocess.run(
        [sys.executable, "-m", "trainer_app.cli.main", "up", *options],
        check=False,
        env={name: value for name, value in os.environ.items() if name not in OWN} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refusal(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why it does not start."""
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    [line] = finished.stderr.splitlines()
    return line


def without_broker(folder: Path) -> str:
    """A PATH on which the first server of Redis ends at once."""
    server = folder / "bin" / "redis-server"
    server.parent.mkdir()
    server.write_text("#!/bin/sh\nexit 1\n")
    server.chmod(0o755)
    return f"{server.parent}{os.pathsep}{os.environ['PATH']}"


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refusal(command("--port", str(port), "--data-root", str(tmp_path)))
    assert line == f"error: API__PORT: {port} is in use; choose another one with --port"


def test_a_data_root_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(command("--data-root", str(tmp_path / "file")))
    assert re.fullmatch(r"error: APP__DATA_ROOT: .*/file cannot be written to: .*", line)


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    line = refusal(command("--data-root", str(tmp_path), JOBS__LEASE_SEC="soon"))
    assert line.startswith("error: JOBS__LEASE_SEC: ")


def test_an_open_door_is_one_line(tmp_path: Path) -> None:
    line = refusal(command("--host", "0.0.0.0", "--data-root", str(tmp_path)))
    assert line.startswith("error: API__HOST: 0.0.0.0 can be reached from other machines")


def without_lock(run: Path) -> None:
    (run / "lock").unlink()


@pytest.mark.parametrize("harm", [without_lock, shutil.rmtree])
def test_a_second_stack_is_refused_though_somebody_has_deleted_the_lock_of_the_first(
    settings: Settings, harm: Callable[[Path], None]
) -> None:
    root = settings.paths.data_root
    (root / "run").mkdir(parents=True)
    with locked_root(root):
        harm(root / "run")
        with pytest.raises(SettingsError, match=r"is in use by a stack that runs$"):
            up(settings)
    with locked_root(root):
        pass


def test_where_no_folder_can_be_locked_the_file_counts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = settings.paths.data_root
    (root / "run").mkdir(parents=True)
    lock = fcntl.flock

    def flock(file: int | IO[str], operation: int) -> None:
        if isinstance(file, int):
            raise OSError(errno.EBADF, "as over NFS")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_root(root), pytest.raises(SettingsError, match=r"is in use by a stack that runs$"):
        up(settings)


def test_a_second_stack_on_the_same_data_root_is_refused(settings: Settings) -> None:
    run = settings.paths.data_root / "run"
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match=r"is in use by a stack that runs$"):
            up(settings)
        urls = {"api_url": "http://127.0.0.1:8000", "redis_url": "", "database_url": ""}
        write_state(settings.paths.data_root, [], **urls)
        with pytest.raises(SettingsError, match=r"that runs at http://127.0.0.1:8000$"):
            up(settings)
        state_file(settings.paths.data_root).write_text('{"api_url":')
        with pytest.raises(SettingsError, match=r"runs; where is not known, for .* is damaged$"):
            up(settings)


LISTENER = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(300)
"""


@pytest.fixture
def left_api(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The API of a stack on tmp_path/data that was killed with its guard, and its port."""
    command = [sys.executable, "-c", LISTENER]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as left:
        assert left.stdout is not None
        port = int(left.stdout.readline())
        root = tmp_path / "data"
        (root / "run").mkdir(parents=True)
        urls = {"api_url": "", "redis_url": "", "database_url": ""}
        api = Process(name="api", role=Role.API, command=tuple(command))
        write_state(root, [(api, left.pid)], **urls)
        yield left, port
        left.kill()


def test_the_api_that_a_killed_stack_left_does_not_hold_its_port(
    tmp_path: Path, left_api: tuple[subprocess.Popen[str], int]
) -> None:
    left, port = left_api
    options = ("--port", str(port), "--data-root", str(tmp_path / "data"))
    finished = command(*options, PATH=without_broker(tmp_path))
    assert "ended what a killed stack had left running: api" in finished.stdout
    assert left.wait(5) == -signal.SIGTERM
    assert finished.returncode == 4  # of the broker, which comes behind the ports
    assert "does not answer" in finished.stderr


def test_the_api_of_the_stack_whose_data_root_was_copied_goes_on(
    tmp_path: Path, left_api: tuple[subprocess.Popen[str], int]
) -> None:
    left, _ = left_api
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    options = ("--port", "0", "--data-root", str(tmp_path / "copy"))
    finished = command(*options, PATH=without_broker(tmp_path))
    assert "stack.json is of another data root" in finished.stdout
    assert "had left running" not in finished.stdout
    assert finished.returncode == 4  # of the broker, which comes behind what was left
    assert left.poll() is None


def test_the_port_of_a_stranger_is_refused_when_what_was_left_has_ended(
    tmp_path: Path, left_api: tuple[subprocess.Popen[str], int]
) -> None:
    left, _ = left_api
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        finished = command("--port", str(port), "--data-root", str(tmp_path / "data"))
    assert finished.returncode == 2
    assert (
        finished.stderr == f"error: API__PORT: {port} is in use; choose another one with --port\n"
    )
    assert left.wait(5) == -signal.SIGTERM


def test_what_a_stack_lives_from_is_left_alone(
    tmp_path: Path, left_api: tuple[subprocess.Popen[str], int]
) -> None:
    left, port = left_api
    with (tmp_path / "data" / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refusal(command("--port", str(port), "--data-root", str(tmp_path / "data")))
    assert "is in use by a stack that runs" in line
    assert left.poll() is None


@pytest.mark.parametrize("data", [b"", b'{"api_url": "ht', b"\xff"])
def test_a_damaged_state_does_not_stop_the_start(tmp_path: Path, data: bytes) -> None:
    root = tmp_path / "data"
    (root / "run").mkdir(parents=True)
    state_file(root).write_bytes(data)
    options = ("--port", "0", "--data-root", str(root))
    finished = command(*options, PATH=without_broker(tmp_path))
    assert f"{state_file(root)} is damaged and counts as none" in finished.stdout
    assert finished.returncode == 4  # of the broker
    assert "Traceback" not in finished.stderr


def test_a_start_says_which_folder_is_not_the_one_that_it_was(tmp_path: Path) -> None:
    root = tmp_path / "data"
    options = ("--port", "0", "--data-root", str(root))
    path = without_broker(tmp_path)
    assert "waits for it" not in command(*options, PATH=path).stdout
    (root / "artifacts" / ".trainer-folder").unlink()
    said = command(*options, PATH=path).stdout
    assert f"{root}/artifacts has no .trainer-folder" in said
    assert f"{root}/runs has no" not in said


def test_an_address_of_another_machine_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(
        settings,
        api=replace(settings.api, host="192.0.2.1"),
        security=replace(settings.security, allow_open=True),
    )
    with pytest.raises(SettingsError, match=r"^API__HOST: cannot listen on 192.0.2.1:8000"):
        up(elsewhere)


def test_a_stack_without_redis_is_refused(settings: Settings) -> None:
    without = replace(settings, redis=replace(settings.redis, enabled=False))
    with pytest.raises(SettingsError, match=r"^REDIS__ENABLED: "):
        up(without)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_a_client_on_this_machine_finds_the_api(settings: Settings, host: str, url: str) -> None:
    assert api_url(replace(settings, api=replace(settings.api, host=host))) == url


def test_a_broker_from_outside_that_does_not_answer_ends_the_start(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port('127.0.0.1')}/0"
    finished = command("--port", "0", "--data-root", str(tmp_path), REDIS__URL=url)
    assert finished.returncode == 4
    assert "does not answer" in finished.stderr
    assert "secret" not in finished.stdout + finished.stderr


def test_a_broker_that_does_not_start_ends_the_start(tmp_path: Path) -> None:
    options = ("--port", "0", "--data-root", str(tmp_path / "data"))
    finished = command(*options, PATH=without_broker(tmp_path))
    assert finished.returncode == 4
    assert "does not answer" in finished.stderr


def test_a_database_that_does_not_answer_ends_the_start(tmp_path: Path) -> None:
    url = f"postgresql://127.0.0.1:{free_port('127.0.0.1')}/none"
    finished = command("--port", "0", "--data-root", str(tmp_path), DATABASE__URL=url)
    assert finished.returncode == 4
    assert finished.stderr.count("\n") == 1
    assert not state_file(tmp_path).exists()


def test_a_stack_that_waits_for_its_broker_can_be_stopped(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port('127.0.0.1')}/0"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer_app.cli.main", "up", "--port", "0"],
        env=os.environ | {"APP__DATA_ROOT": str(tmp_path), "REDIS__URL": url},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / "logs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    assert process.wait(8) == 0


def test_a_stack_whose_database_is_locked_can_be_stopped(tmp_path: Path, redis_url: str) -> None:
    path = tmp_path / "trainer.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        environment = {"DATABASE__URL": f"sqlite:///{path}", "REDIS__URL": redis_url}
        with subprocess.Popen(
            [sys.executable, "-m", "trainer_app.cli.main", "up", "--port", "0"],
            env=os.environ | environment | {"APP__DATA_ROOT": str(tmp_path / "data")},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            deadline = time.monotonic() + 30
            while str(path) not in {file.path for file in psutil.Process(process.pid).open_files()}:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)
            process.terminate()
            asked = time.monotonic()
            said, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 0
    assert [line.split()[-1] for line in said.splitlines()] == ["stopping", "stopped"]


def test_a_stack_that_will_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "STOP_SECONDS", 0.2)
    script = "trap '' TERM; echo; while :; do sleep 0.1; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stubborn = RunningStack(
            process=process, data_root=tmp_path, output=tmp_path / "up.log", api_url=""
        )
        assert stubborn.stop() == -signal.SIGKILL


def test_a_stack_whose_run_folder_is_removed_makes_it_again_and_can_be_found(
    settings: Settings, signals: ups._Signals, tmp_path: Path
) -> None:
    root = settings.paths.data_root
    (root / "run").mkdir(parents=True)
    output = Output(io.StringIO(), tmp_path, [])
    supervisor = Supervisor(output, os.environ)
    supervisor.start(Process(name="worker", role=Role.WORKER, command=("sleep", "300")))
    found: list[bool] = []

    def wait_for_the_state() -> None:
        deadline = time.monotonic() + 20
        while not state_file(root).exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def remove() -> None:
        wait_for_the_state()
        shutil.rmtree(root / "run")
        wait_for_the_state()
        state = read_state(root)
        found.append(state is not None and len(state["pids"]["worker"]) == 1)
        signals.count += 1

    thread = Thread(target=remove)
    thread.start()
    assert ups._Stack(settings, output, signals)._watch(supervisor) == 0
    thread.join()
    supervisor.stop(lambda: True)

    assert found == [True]


def test_a_disk_that_is_full_does_not_stop_what_runs(
    settings: Settings, signals: ups._Signals, tmp_path: Path
) -> None:
    printed = io.StringIO()
    stack = ups._Stack(settings, Output(printed, tmp_path, []), signals)
    supervisor = Supervisor(Output(printed, tmp_path, []), os.environ)
    stack._write_state(supervisor)  # into a folder that is not there
    supervisor.stop(lambda: True)
    assert "stack.json could not be written" in printed.getvalue()


def test_a_stack_that_is_not_ready_in_time_gives_up(
    settings: Settings, signals: ups._Signals, tmp_path: Path
) -> None:
    output = Output(io.StringIO(), tmp_path, [])
    supervisor = Supervisor(output, os.environ)
    supervisor.start(Process(name="api", role=Role.API, command=("sleep", "60")))
    stack = ups._Stack(settings, output, signals)
    assert stack._hopeless(supervisor, 1.0, "no-worker") is None
    assert "no-worker" in str(stack._hopeless(supervisor, 1_000.0, "no-worker"))
    supervisor.stop(lambda: True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A whole stack."""
    root = tmp_path_factory.mktemp("stack") / "data root"
    with running_stack(root, environment=OWN) as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestWholeStack:
    def test_it_says_where_it_is(self, stack: RunningStack) -> None:
        assert f"\nready  {stack.api_url}  (docs at /docs)\n" in stack.output.read_text()
        assert httpx.get(f"{stack.api_url}/readyz").json() == {"status": "ready", "reason": None}
        pids = stack.state["pids"]
        assert all(psutil.pid_exists(pid) for pid in [pids["api"] or 0, *pids["worker"]])
        with redis.Redis.from_url(stack.state["redis_url"]) as client:
            assert client.ping()

    def test_what_dies_comes_back_and_is_written_down(self, stack: RunningStack) -> None:
        before = stack.state["pids"]["api"]
        assert before is not None
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while stack.state["pids"]["api"] == before or not _answers(stack.api_url):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_a_client_that_never_ends_its_headers_is_cut_off(self, stack: RunningStack) -> None:
        host, _, port = stack.api_url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=40) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
            started = time.monotonic()
            assert slow.recv(1) == b""
            assert time.monotonic() - started < 30

    def test_a_second_one_names_the_first(self, stack: RunningStack) -> None:
        with pytest.raises(Unavailable, match=f"in use by a stack that runs at {stack.api_url}"):
            start_stack(stack.data_root, environment=OWN)
        assert stack.process.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_ends_with_all_that_it_started_and_starts_again(tmp_path: Path) -> None:
    stack = start_stack(tmp_path, environment=OWN)
    started = [psutil.Process(stack.process.pid), *_descendants(stack)]
    state_file(tmp_path).write_bytes(b"")  # its own, damaged: it stops all the same
    asked = time.monotonic()
    assert stack.stop() == 0
    assert time.monotonic() - asked < 30
    assert [process for process in started if _runs(process)] == []
    # Gone, or empty where a process that was just ending had the file open.
    assert sum(log.stat().st_size for log in tmp_path.glob("trainer.db-wal")) == 0
    with pytest.raises(Unavailable, match="no stack runs"):
        assert stack.state
    # An append-only file that cannot be read is set aside.
    for file in (tmp_path / "broker" / "appendonlydir").iterdir():
        file.write_bytes(b"nothing that a server would write")
    # What a killed stack left running, its guard killed as well, is ended.
    orphan = subprocess.Popen(["sleep", "300"], start_new_session=True)
    urls = {"api_url": "", "redis_url": "", "database_url": ""}
    sleeper = Process(name="orphan", role=Role.LIGHT, command=("sleep", "300"))
    write_state(tmp_path, [(sleeper, orphan.pid)], **urls)
    with running_stack(tmp_path, environment=OWN) as again:
        assert orphan.wait(5) == -signal.SIGTERM
        assert "had left running: orphan" in again.output.read_text()
        assert "cannot read its file" in again.output.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_a_kill_nothing_is_left_and_it_starts_again(tmp_path: Path) -> None:
    again = start_stack(tmp_path, environment=OWN)
    try:
        # What a supervisor that is killed leaves is ended by its guard, or by the next start.
        left = _descendants(again)
        [guard] = [process for process in left if "trainer_app.stack.guard" in process.cmdline()]
        guard.kill()
        again.process.kill()
        again.process.wait()
        port = again.api_url.rpartition(":")[2]  # which the API still holds
        third = start_stack(tmp_path, environment=OWN, options=("--port", port))
        assert third.api_url == again.api_url
        left += _descendants(third)
        third.kill()
        psutil.wait_procs(left, timeout=10)
        assert [process for process in left if _runs(process)] == []
    finally:
        again.process.kill()


@pytest.mark.slow
def test_a_stack_that_never_gets_ready_ends_with_what_is_wrong(tmp_path: Path) -> None:
    broken = {**OWN, "PYTHONPATH": str(tmp_path / "path")}
    (tmp_path / "path" / "gunicorn").mkdir(parents=True)
    (tmp_path / "path" / "gunicorn" / "__init__.py").touch()
    (tmp_path / "path" / "gunicorn" / "__main__.py").write_text("raise SystemExit('broken')")
    with pytest.raises(Unavailable) as failed:
        start_stack(tmp_path / "data", environment=broken)
    assert "did not become ready" in failed.value.message
    assert "api does not stay up" in (tmp_path / "data/run/logs/up.log").read_text()


def _descendants(stack: RunningStack) -> list[psutil.Process]:
    return psutil.Process(stack.process.pid).children(recursive=True)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
