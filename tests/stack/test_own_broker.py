"""The broker that a stack started comes back when it dies, whatever became of its files."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from trainer_app.errors import DiskFull
from trainer_app.settings import Settings
from trainer_app.stack import broker as brokers
from trainer_app.stack import up as ups
from trainer_app.stack.broker import Broker
from trainer_app.stack.output import Output
from trainer_app.stack.ports import is_free
from trainer_app.stack.processes import Role
from trainer_app.stack.supervisor import Supervisor


class OwnBroker:
    """The broker of a stack that starts nothing else."""

    def __init__(self, settings: Settings, signals: ups._Signals, logs: Path) -> None:
        self.printed = io.StringIO()
        output = Output(self.printed, logs, [Role.BROKER])
        self.supervisor = Supervisor(output, os.environ)
        self.folder = settings.paths.data_root / "broker"
        (settings.paths.data_root / "run").mkdir(parents=True)
        ups._Stack(settings, output, signals)._start_own_broker(self.supervisor)
        self.url = self.supervisor.environment["REDIS__URL"]
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self) -> None:
        [(_, pid)] = self.supervisor.pids()
        os.kill(pid, signal.SIGKILL)

    def queue(self, *messages: str) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.rpush("queue", *messages)

    def queued(self) -> list[bytes]:
        with redis.Redis.from_url(self.url) as client:
            return list(client.lrange("queue", 0, -1))

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        with redis.Redis.from_url(self.url) as client:
            while True:
                assert time.monotonic() < deadline, self.printed.getvalue()
                self.supervisor.tick()
                with suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.05)


@pytest.fixture
def own_broker(
    settings: Settings, signals: ups._Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OwnBroker]:
    monkeypatch.setattr("trainer_app.stack.supervisor.FIRST_DELAY_SECONDS", 0.1)
    found = OwnBroker(settings, signals, tmp_path)
    yield found
    found.supervisor.stop(lambda: True)


def test_a_broker_that_is_killed_and_cannot_read_its_file_comes_back_without_it(
    own_broker: OwnBroker,
) -> None:
    own_broker.queue(*"abc")
    own_broker.queue("last")
    [written] = (own_broker.folder / "appendonlydir").glob("*.incr.aof")
    deadline = time.monotonic() + 30
    while b"last" not in written.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    damaged = bytearray(written.read_bytes())
    damaged[damaged.index(b"*")] ^= 1
    written.write_bytes(damaged)

    own_broker.kill()
    own_broker.until_it_answers()

    assert "the broker cannot read its file, which is now" in own_broker.printed.getvalue()
    own_broker.queue("another")


def test_a_broker_that_is_killed_keeps_its_file(own_broker: OwnBroker) -> None:
    own_broker.kill()
    own_broker.until_it_answers()

    assert "cannot read its file" not in own_broker.printed.getvalue()


def test_a_broker_whose_port_is_taken_waits_for_it_and_keeps_its_file(
    own_broker: OwnBroker,
) -> None:
    own_broker.queue("message")
    own_broker.kill()
    deadline = time.monotonic() + 30
    while not is_free("127.0.0.1", own_broker.port):
        assert time.monotonic() < deadline
    with socket.create_server(("127.0.0.1", own_broker.port)):
        while own_broker.printed.getvalue().count("(exit code 1)") < 3:
            assert time.monotonic() < deadline
            own_broker.supervisor.tick()
            time.sleep(0.02)
    own_broker.until_it_answers()

    said = own_broker.printed.getvalue()
    assert f"the broker waits for its port {own_broker.port}, which is in use" in said
    assert "cannot read its file" not in said
    assert own_broker.queued() == [b"message"]


def test_a_port_that_was_taken_for_a_while_excuses_no_file_that_cannot_be_read(
    own_broker: OwnBroker,
) -> None:
    own_broker.kill()
    deadline = time.monotonic() + 60
    while not is_free("127.0.0.1", own_broker.port):
        assert time.monotonic() < deadline
    for file in (own_broker.folder / "appendonlydir").iterdir():
        file.write_bytes(b"nothing that a server would write")
    with socket.create_server(("127.0.0.1", own_broker.port)):
        while "which is in use" not in own_broker.printed.getvalue():
            assert time.monotonic() < deadline
            own_broker.supervisor.tick()
            time.sleep(0.02)
    own_broker.until_it_answers()

    assert "the broker cannot read its file, which is now" in own_broker.printed.getvalue()


def test_a_broker_whose_folder_is_gone_comes_back_with_a_new_one(own_broker: OwnBroker) -> None:
    shutil.rmtree(own_broker.folder)

    own_broker.kill()
    own_broker.until_it_answers()

    assert (own_broker.folder / "appendonlydir").is_dir()


def removed(run: Path) -> None:
    (run / "broker.conf").unlink()


def emptied(run: Path) -> None:
    (run / "broker.conf").write_bytes(b"")


def cut(run: Path) -> None:
    os.truncate(run / "broker.conf", 150)


@pytest.mark.parametrize("harm", [removed, emptied, cut, shutil.rmtree])
def test_a_broker_whose_configuration_was_harmed_comes_back_as_it_was(
    own_broker: OwnBroker, harm: Callable[[Path], None]
) -> None:
    own_broker.queue("message")
    run = own_broker.folder.parent / "run"
    harm(run)
    own_broker.kill()
    own_broker.until_it_answers()

    said = own_broker.printed.getvalue()
    assert "the broker's configuration was gone or changed: it is restored" in said
    assert "cannot read its file" not in said
    assert own_broker.queued() == [b"message"]
    assert (run / "broker.conf").stat().st_mode & 0o777 == 0o600
    said_at_the_next_start: list[str] = []
    own_broker.supervisor.stop(lambda: True)
    again = brokers.configure(own_broker.folder.parent, say=said_at_the_next_start.append)
    assert (again.url, said_at_the_next_start) == (own_broker.url, [])


def test_refusals_for_a_harmed_configuration_do_not_count_against_the_file_of_the_broker(
    own_broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_broker.queue("message")
    removed(own_broker.folder.parent / "run")
    monkeypatch.setattr(Broker, "restore", lambda _self: False)  # as where it is harmed again
    own_broker.kill()
    deadline = time.monotonic() + 30
    while "(exit code 1)" not in own_broker.printed.getvalue():
        assert time.monotonic() < deadline
        own_broker.supervisor.tick()
        time.sleep(0.02)
    monkeypatch.undo()
    own_broker.until_it_answers()

    assert "cannot read its file" not in own_broker.printed.getvalue()
    assert own_broker.queued() == [b"message"]


def test_a_configuration_for_which_the_disk_is_full_is_said_and_tried_again(
    own_broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, data: bytes, *, mode: int = 0o666) -> None:
        raise DiskFull(f"{path} could not be written: No space left on device")

    monkeypatch.setattr("trainer_app.stack.broker.write_atomically", fails)
    removed(own_broker.folder.parent / "run")
    own_broker.kill()
    deadline = time.monotonic() + 30
    while "cannot be mended" not in own_broker.printed.getvalue():
        assert time.monotonic() < deadline
        own_broker.supervisor.tick()
        time.sleep(0.02)
    monkeypatch.undo()
    own_broker.until_it_answers()


def test_a_folder_that_cannot_be_mended_is_said_and_tried_again(own_broker: OwnBroker) -> None:
    shutil.rmtree(own_broker.folder)
    own_broker.folder.touch()

    own_broker.kill()
    deadline = time.monotonic() + 30
    while "the broker cannot be mended: " not in own_broker.printed.getvalue():
        assert time.monotonic() < deadline
        own_broker.supervisor.tick()
        time.sleep(0.05)
    own_broker.folder.unlink()

    own_broker.until_it_answers()
