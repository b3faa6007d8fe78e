"""A worker's process as the tests of tasks see it: real database, real Redis."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator

import pytest

from tasks import process
from tasks.held import draining
from tests.databank_server import DataBankServer, running_data_bank
from tests.tasks.tiny_runs import TEXT, TINY, QueueRun
from trainer_app import events
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import runs
from trainer_app.store.database import Database


@pytest.fixture
def worker(settings: Settings) -> Iterator[Settings]:
    """The settings of a worker process that has just begun: nothing is open yet."""
    made = (
        process.settings,
        process.database,
        process.redis_client,
        process.broker_keys,
        process.publisher,
        process.queue,
        process.growth,
    )
    for make in made:
        make.cache_clear()
    yield settings
    draining.clear()
    process.spent.clear()
    process.publisher().close()
    process.queue().close()
    process.redis_client().close()
    process.database().close()
    for make in made:
        make.cache_clear()


@pytest.fixture
def queue_run(worker: Settings) -> QueueRun:
    """Queues runs that this worker can train."""
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "a.txt").write_bytes(TEXT)

    def queue(**fields: object) -> str:
        spec = TrainSpec.from_json(json.dumps(json.loads(TINY.to_json()) | fields))
        return runs.create(process.database(), spec, queue="trainer").run_id

    return queue


@pytest.fixture
def lock_database(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Lets nobody write to the database from now on until the given function returns."""
    database = Database(worker.database_url, wait_seconds=0.05)
    monkeypatch.setattr(process, "database", lambda: database)
    threads = []

    def lock(wait: Callable[[], object]) -> None:
        is_locked = threading.Event()

        def hold() -> None:
            connection = sqlite3.connect(str(database.file), isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            is_locked.set()
            wait()
            connection.close()

        threads.append(threading.Thread(target=hold))
        threads[-1].start()
        assert is_locked.wait(10)

    yield lock
    for thread in threads:
        thread.join()


@pytest.fixture
def sent_events(worker: Settings) -> Callable[[], list[dict[str, object]]]:
    """What the process has announced, oldest first; nothing can be sent afterwards."""

    def read() -> list[dict[str, object]]:
        process.publisher().close()
        entries = process.redis_client().xrange(events.STREAM) or []
        return [json.loads(fields["event"]) for _, fields in entries if fields]

    return read


@pytest.fixture
def server(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataBankServer]:
    """A data bank, which the settings name."""
    with running_data_bank() as running:
        monkeypatch.setenv("APP__DATA_BANK_API_URL", running.url)
        monkeypatch.setenv("APP__DATA_BANK_API_KEY", "bank-secret")
        monkeypatch.setenv("APP__DATA_BANK_RETRY_SEC", "0.6")
        process.settings.cache_clear()
        yield running
