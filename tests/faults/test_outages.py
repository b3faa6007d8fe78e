"""A database and a broker that are away for seconds and for minutes."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tasks.watchdog import KILL_SECONDS
from tests.conftest import PostgresServer
from tests.faults.victim import Victim, assert_one_at_a_time, becomes, runs_as
from tests.read_only import read_only
from trainer_app.stack import broker

MINUTES = 125.0  # seconds; many leases
_STEPS = 5  # that show that it goes on


class OwnBroker:
    """A broker from outside of the stack, which can be taken away for as long as one likes."""

    def __init__(self, root: Path) -> None:
        self._configured = broker.configure(root)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self._configured.url

    def start(self) -> None:
        self._process = subprocess.Popen(self._configured.command, stdout=subprocess.DEVNULL)
        broker.wait_until_it_answers(self.url, timeout_seconds=30)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBroker]:
    own = OwnBroker(tmp_path / "broker")
    own.start()
    yield own
    own.kill()


@pytest.fixture
def further_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Of which server the stack is given, and how long a lease is."""
    kind, lease = request.param
    match kind:
        case "postgresql":
            server: PostgresServer = request.getfixturevalue("own_postgres")
            return {"DATABASE__URL": server.uri, "JOBS__LEASE_SEC": lease}
        case "redis" | "redis beside postgresql":
            own: OwnBroker = request.getfixturevalue("own_broker")
            settings = {"REDIS__URL": own.url, "JOBS__LEASE_SEC": lease}
            if kind != "redis":
                settings["DATABASE__URL"] = request.getfixturevalue("bare_postgres_url")
            return settings
        case _:
            return {"JOBS__LEASE_SEC": lease}


def goes_on(victim: Victim, run_id: str, attempt: int = 1) -> None:
    """Wait until an attempt has made more steps."""
    step = victim.client.get_run(run_id)["step"] or 0
    victim.until(run_id, runs_as(attempt, beyond=step + _STEPS), seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "further_settings", [("redis", "10"), ("redis beside postgresql", "10")], indirect=True
)
def test_training_goes_on_and_can_be_cancelled_while_redis_is_down_for_minutes(
    victim: Victim, own_broker: OwnBroker
) -> None:
    first = victim.start_run()
    victim.until(first, runs_as(1), seconds=60)
    queued = [victim.start_run(steps=2) for _ in range(2)]

    own_broker.kill()
    down_at = time.monotonic()
    while time.monotonic() - down_at < MINUTES:
        goes_on(victim, first)
        time.sleep(5)
    asked_at = time.monotonic()
    victim.client.cancel_run(first)
    victim.until(first, lambda run: run["status"] == "cancelled", seconds=15)
    assert time.monotonic() - asked_at < 15

    own_broker.start()
    give_up_at = time.monotonic() + 75
    for run_id in queued:
        left = give_up_at - time.monotonic()
        run = victim.until(run_id, lambda run: run["status"] == "completed", seconds=left)
        assert run["attempt"] == 1
    assert_one_at_a_time(victim.log(first))


@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [("redis", "10")], indirect=True)
def test_a_process_that_has_left_its_job_is_not_ended_while_its_worker_waits_for_redis(
    victim: Victim, own_broker: OwnBroker
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)
    child = victim.child()

    own_broker.kill()
    time.sleep(2)  # the worker notices, and waits from then on for nothing else
    victim.client.cancel_run(run_id)
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    time.sleep(KILL_SECONDS + 10)

    own_broker.start()
    after = victim.start_run(steps=2)
    victim.until(after, lambda run: run["status"] == "completed", seconds=75)
    assert victim.child() == child
    assert "does not leave its job" not in victim.stack.output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("further_settings", "seconds"),
    [(("postgresql", "60"), 30.0), (("postgresql", "10"), MINUTES)],
    indirect=["further_settings"],
)
def test_a_run_goes_on_as_the_same_attempt_when_its_database_was_away(
    victim: Victim, own_postgres: PostgresServer, seconds: float
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)
    goes_on(victim, run_id)

    own_postgres.stop()
    time.sleep(seconds)
    own_postgres.start()
    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        becomes(http, "/readyz", 200, seconds=60)

    victim.until(run_id, lambda _run: "the database is back" in said(victim, run_id), seconds=60)
    goes_on(victim, run_id)
    assert "the database is away: the work goes on" in said(victim, run_id)
    victim.client.cancel_run(run_id)
    run = victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    assert run["attempt"] == 1
    assert_one_at_a_time(victim.log(run_id))


@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [("postgresql", "10")], indirect=True)
def test_a_stack_whose_postgresql_is_frozen_says_so_within_five_seconds_and_goes_on(
    victim: Victim, own_postgres: PostgresServer
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)
    train = {"model_family": "char_lstm", "corpus_file_id": victim.corpus_file_id}

    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        with own_postgres.frozen():
            frozen_until = time.monotonic() + 25
            while time.monotonic() < frozen_until:
                refuses(lambda: http.get(f"/runs/{run_id}"))
                refuses(lambda: http.post("/runs/train", json=train))
                assert http.get("/healthz").json() == {"status": "ok"}
                ready = http.get("/readyz")
                assert ready.json() == {"status": "degraded", "reason": "database-unavailable"}
        becomes(http, "/readyz", 200, seconds=60)

    victim.until(run_id, lambda _run: "the database is back" in said(victim, run_id), seconds=60)
    goes_on(victim, run_id)
    assert len(victim.client.list_runs()["data"]) == 1
    victim.client.cancel_run(run_id)
    run = victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    assert run["attempt"] == 1
    assert_one_at_a_time(victim.log(run_id))


def refuses(ask: Callable[[], httpx.Response]) -> None:
    """The API says within 5 s that it cannot answer now."""
    asked_at = time.monotonic()
    answer = ask()
    assert time.monotonic() - asked_at < 5
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")


@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [("sqlite", "5")], indirect=True)
def test_a_run_goes_on_as_the_same_attempt_when_its_database_was_locked_for_many_leases(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)

    path = victim.stack.data_root / "trainer.db"
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(25)

    goes_on(victim, run_id)
    assert_one_at_a_time(victim.log(run_id))


@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [("redis", "5")], indirect=True)
def test_a_run_waits_where_neither_database_nor_broker_can_tell_whose_it_is(
    victim: Victim, own_broker: OwnBroker
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)

    own_broker.kill()
    path = victim.stack.data_root / "trainer.db"
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        victim.until(run_id, lambda _run: "the work waits" in said(victim, run_id), seconds=60)
        time.sleep(2)  # for the step that was under way, and the checkpoint after it
        before = victim.log(run_id)
        time.sleep(10)
        assert victim.log(run_id) == before

    again = "an answer came: the work goes on after"
    victim.until(run_id, lambda _run: again in said(victim, run_id), seconds=60)
    goes_on(victim, run_id)
    assert [said(victim, run_id).count(words) for words in ("the work waits", again)] == [1, 1]
    assert_one_at_a_time(victim.log(run_id))


@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [("sqlite", "10")], indirect=True)
def test_a_run_goes_on_as_the_same_attempt_when_its_database_was_moved_away(
    victim: Victim, tmp_path: Path
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)
    goes_on(victim, run_id)
    root = victim.stack.data_root

    for file in root.glob("trainer.db*"):
        file.rename(tmp_path / file.name)
    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        becomes(http, "/readyz", 503, seconds=10)
        refuses(lambda: http.get(f"/runs/{run_id}"))
        time.sleep(25)
        assert not list(root.glob("trainer.db*"))
        for file in tmp_path.glob("trainer.db*"):
            file.rename(root / file.name)
        becomes(http, "/readyz", 200, seconds=60)

    victim.until(run_id, lambda _run: "the database is back" in said(victim, run_id), seconds=60)
    goes_on(victim, run_id)
    victim.client.cancel_run(run_id)
    run = victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    assert run["attempt"] == 1
    assert_one_at_a_time(victim.log(run_id))


@pytest.mark.slow
@pytest.mark.parametrize(
    "further_settings", [("sqlite", "10"), ("postgresql", "10")], indirect=True
)
def test_processes_that_began_while_the_database_was_read_only_write_to_it_afterwards(
    victim: Victim, request: pytest.FixtureRequest
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)
    train = {"model_family": "char_lstm", "corpus_file_id": victim.corpus_file_id}

    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        with read_only_database(victim, request):
            for process in (*victim.worker().children(), *api_processes(victim), keeper(victim)):
                process.kill()
            becomes(http, "/healthz", 200, seconds=60)
            becomes(http, "/readyz", 503, seconds=60)
            read_only_until = time.monotonic() + 25
            while time.monotonic() < read_only_until:
                refuses(lambda: http.post("/runs/train", json=train))
                assert http.get(f"/runs/{run_id}").status_code == 200
                ready = http.get("/readyz")
                assert ready.json() == {"status": "degraded", "reason": "database-unavailable"}
                time.sleep(1)
        assert http.get("/readyz").status_code == 200
    victim.start_run(steps=2)

    victim.until(run_id, runs_as(2), seconds=60)
    goes_on(victim, run_id, attempt=2)
    assert_one_at_a_time(victim.log(run_id))


@contextmanager
def read_only_database(victim: Victim, request: pytest.FixtureRequest) -> Iterator[None]:
    """Who connects from now on may only read it."""
    path = victim.stack.data_root / "trainer.db"
    if path.exists():
        with read_only(path):
            yield
        return
    server: PostgresServer = request.getfixturevalue("own_postgres")
    name = urlsplit(server.uri).path.removeprefix("/")
    with server.default_read_only(name):
        yield


def api_processes(victim: Victim) -> list[psutil.Process]:
    """Those that answer: their parent starts others at once."""
    master = victim.stack.state["pids"]["api"]
    assert master is not None
    return psutil.Process(master).children()


def keeper(victim: Victim) -> psutil.Process:
    """Housekeeping."""
    return psutil.Process(victim.stack.state["pids"]["housekeeping"][0])


def said(victim: Victim, run_id: str) -> str:
    return "\n".join(victim.events(run_id))
