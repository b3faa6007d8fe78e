"""The broker that a stack starts for itself."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from trainer_app.errors import SettingsError, Unavailable
from trainer_app.stack import broker as brokers
from trainer_app.stack.broker import Broker
from trainer_app.stack.ports import free_port

Start = Callable[[Broker], subprocess.Popen[bytes]]


def port_of(broker: Broker) -> int:
    port = urlsplit(broker.url).port
    assert port is not None
    return port


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a broker and waits until it answers."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(broker: Broker) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(broker.command, stdout=subprocess.DEVNULL)
        running.append(process)
        brokers.wait_until_it_answers(
            broker.url, timeout_seconds=10, alive=lambda: process.poll() is None
        )
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_it_answers_only_with_its_password(tmp_path: Path, start: Start) -> None:
    broker = brokers.configure(tmp_path)
    start(broker)
    with redis.Redis.from_url(broker.url) as client:
        assert client.ping()
    with (
        redis.Redis.from_url(brokers.without_password(broker.url)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    with pytest.raises(Unavailable, match="refuses the password"):
        brokers.wait_until_it_answers(broker.url.replace("://:", "://:not"), timeout_seconds=5)


def test_its_password_is_for_its_owner_alone(tmp_path: Path) -> None:
    brokers.configure(tmp_path)
    file = tmp_path / "run" / "broker.conf"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_it_is_set_up_to_keep_what_is_queued(tmp_path: Path, start: Start) -> None:
    broker = brokers.configure(tmp_path)
    start(broker)
    with redis.Redis.from_url(broker.url, decode_responses=True) as client:
        found = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "dir")
    assert found == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "dir": str(tmp_path / "broker"),
    }


def test_what_was_queued_survives_a_kill(tmp_path: Path, start: Start) -> None:
    broker = brokers.configure(tmp_path)
    process = start(broker)
    with redis.Redis.from_url(broker.url) as client:
        client.rpush("queue", *range(1_000))
        time.sleep(1.2)  # everysec
    process.kill()
    process.wait()
    start(broker)
    with redis.Redis.from_url(broker.url) as client:
        assert client.llen("queue") == 1_000


def test_a_torn_end_of_its_file_is_cut_off(tmp_path: Path, start: Start) -> None:
    broker = brokers.configure(tmp_path)
    process = start(broker)
    with redis.Redis.from_url(broker.url) as client:
        client.rpush("queue", *range(100))
        client.rpush("queue", "last")
    process.terminate()
    process.wait()
    [written] = (tmp_path / "broker" / "appendonlydir").glob("*.incr.aof")
    written.write_bytes(written.read_bytes()[:-5])
    start(broker)
    with redis.Redis.from_url(broker.url) as client:
        assert client.llen("queue") == 100


def test_its_url_outlives_a_restart(tmp_path: Path, start: Start) -> None:
    first = brokers.configure(tmp_path)
    assert brokers.configure(tmp_path).url == first.url
    # A port that somebody else has taken meanwhile is given up, the password is not.
    with socket.create_server((brokers.HOST, port_of(first))):
        second = brokers.configure(tmp_path)
    assert second.url != first.url
    assert second.url.rpartition("@")[0] == first.url.rpartition("@")[0]


def test_a_server_that_was_left_on_its_folder_is_ended_and_what_is_queued_is_kept(
    tmp_path: Path, start: Start
) -> None:
    said: list[str] = []
    first = brokers.configure(tmp_path)
    left = start(first)
    with redis.Redis.from_url(first.url) as client:
        client.rpush("queue", *range(1_000))

    second = brokers.configure(tmp_path, say=said.append)

    assert said == [f"ending the broker that was left as process {left.pid}"]
    assert left.wait(5) == 0
    assert second.url == first.url
    start(second)
    with redis.Redis.from_url(second.url) as client:
        assert client.llen("queue") == 1_000


def test_a_server_that_was_left_is_ended_though_its_configuration_is_damaged(
    tmp_path: Path, start: Start
) -> None:
    left = start(brokers.configure(tmp_path))
    (tmp_path / "run" / "broker.conf").write_bytes(b"")

    brokers.configure(tmp_path)

    assert left.wait(5) == 0


def test_a_server_that_was_left_and_does_not_end_keeps_another_from_its_folder(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "_END_SECONDS", 0.1)
    broker = brokers.configure(tmp_path)
    left = start(broker)
    left.send_signal(signal.SIGSTOP)

    with pytest.raises(Unavailable, match=f"left as process {left.pid} does not end"):
        brokers.configure(tmp_path)


def test_a_server_of_the_same_password_on_another_folder_goes_on(
    tmp_path: Path, start: Start
) -> None:
    first = brokers.configure(tmp_path / "data")
    left = start(first)
    (tmp_path / "other" / "run").mkdir(parents=True)
    password = urlsplit(first.url).password
    kept = f"port {port_of(first)}\nrequirepass {password}\n"
    (tmp_path / "other" / "run" / "broker.conf").write_text(kept)

    assert port_of(brokers.configure(tmp_path / "other")) != port_of(first)

    assert left.poll() is None


@pytest.mark.parametrize("name", ["data", 'my "data"', "back\\slash"])
def test_a_copy_of_the_data_root_gets_a_broker_of_its_own(tmp_path: Path, name: str) -> None:
    root, copy = tmp_path / name, tmp_path / f"{name} copied"
    said: list[str] = []
    first = brokers.configure(root)
    assert brokers.configure(root, say=said.append).url == first.url
    (tmp_path / "link").symlink_to(root)
    assert brokers.configure(tmp_path / "link", say=said.append).url == first.url
    assert said == []
    shutil.copytree(root, copy)

    second = brokers.configure(copy, say=said.append)

    file = copy / "run" / "broker.conf"
    assert said == [
        f"{file} was written for another data root and counts as none: port and password are new"
    ]
    parts = [url.rpartition("@") for url in (first.url, second.url)]
    assert parts[0][0] != parts[1][0]  # the password
    assert parts[0][2] != parts[1][2]  # the port
    assert brokers.configure(copy, say=said.append).url == second.url


def test_a_data_root_that_was_moved_keeps_its_broker(tmp_path: Path) -> None:
    said: list[str] = []
    url = brokers.configure(tmp_path / "data").url
    (tmp_path / "data").rename(tmp_path / "moved")

    assert brokers.configure(tmp_path / "moved", say=said.append).url == url
    assert said == []


def test_a_copy_at_the_same_path_gets_a_broker_of_its_own(tmp_path: Path) -> None:
    """As where each is mounted there, in a container of its own."""
    root, copy = tmp_path / "data", tmp_path / "copy"
    url = brokers.configure(root).url
    shutil.copytree(root, copy)
    root.rename(tmp_path / "old")
    copy.rename(root)

    assert brokers.configure(root).url.rpartition("@")[0] != url.rpartition("@")[0]


def test_a_configuration_of_the_version_before_is_of_the_data_root_whose_path_it_has(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    url = brokers.configure(root).url
    file = root / "run" / "broker.conf"
    before = re.sub("# root .*\n", "", file.read_text())
    assert before != file.read_text()
    file.write_text(before)
    shutil.copytree(root, tmp_path / "copy")

    assert brokers.configure(root).url == url
    assert brokers.configure(tmp_path / "copy").url.rpartition("@")[0] != url.rpartition("@")[0]


def test_a_file_that_it_cannot_read_is_set_aside(tmp_path: Path, start: Start) -> None:
    broker = brokers.configure(tmp_path)
    assert brokers.set_aside(broker) is None
    process = start(broker)
    process.terminate()
    process.wait()
    for file in (tmp_path / "broker" / "appendonlydir").iterdir():
        file.write_bytes(b"nothing that a server would write")
    with pytest.raises(Unavailable, match="does not answer"):
        start(broker)
    aside = brokers.set_aside(broker)
    assert aside is not None
    assert aside.is_dir()
    start(broker)


def test_a_folder_with_spaces_and_quotes_is_no_trouble(tmp_path: Path, start: Start) -> None:
    root = tmp_path / 'my "own" \\ data'
    start(brokers.configure(root))
    assert (root / "broker" / "appendonlydir").is_dir()


def test_a_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "bin" / "valkey-server"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(own.parent))
    assert brokers.configure(tmp_path / "data").command[0] == str(own)


def test_without_any_server_the_message_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(SettingsError, match="REDIS__URL: must name a running Redis"):
        brokers.configure(tmp_path)


def test_a_broker_that_is_not_there_is_named_without_its_password() -> None:
    url = f"redis://:secret@127.0.0.1:{free_port('127.0.0.1')}/0"
    with pytest.raises(Unavailable) as refused:
        brokers.wait_until_it_answers(url, timeout_seconds=0.1)
    assert "secret" not in refused.value.message
    assert "redis://127.0.0.1:" in refused.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"port 7000\n",
        b"port 70000\nrequirepass secret\n",
        b"port x\nrequirepass secret\n",
        b"port 7000\nrequirepass two words\n",
        b'port 7000\nrequirepass "\n',
        b"port 7000\nrequirepass a@b\n",
        b"port 7000\nrequirepass \0\n",
    ],
)
def test_a_damaged_configuration_counts_as_none(tmp_path: Path, start: Start, data: bytes) -> None:
    said: list[str] = []
    before = brokers.configure(tmp_path, say=said.append)
    assert said == []
    file = tmp_path / "run" / "broker.conf"
    file.write_bytes(data)
    broker = brokers.configure(tmp_path, say=said.append)
    assert said == [f"{file} is damaged and counts as none: port and password are new"]
    assert broker.url.rpartition("@")[0] != before.url.rpartition("@")[0]
    start(broker)


def test_a_password_of_the_users_own_is_kept(tmp_path: Path, start: Start) -> None:
    port = free_port(brokers.HOST)
    password = "!$&()*+,-.;<=>^_`{|}~Aa0"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "broker.conf").write_text(f"port {port}\nrequirepass {password}\n")
    broker = brokers.configure(tmp_path)
    assert broker.url == f"redis://:{password}@127.0.0.1:{port}/0"
    start(broker)
