"""A broker and a database that answer, but late."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.conftest import PostgresServer, RedisServer
from tests.faults.victim import Victim, assert_one_at_a_time, runs_as
from tests.slow_proxy import SlowProxy, slow_proxy

SLOW_SECONDS = 60.0
DELAY = 0.15  # each way; a statement of PostgreSQL and its transaction go it several times


@pytest.fixture
def proxies(redis_server: RedisServer, own_postgres: PostgresServer) -> Iterator[list[SlowProxy]]:
    """Before the broker, and before the database."""
    broker = urlsplit(redis_server.url)
    folder = parse_qs(urlsplit(own_postgres.uri).query)["host"][0]
    (database,) = Path(folder).glob(".s.PGSQL.*[0-9]")

    def connect_to_the_database() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(database))
        return connection

    ways: list[Callable[[], socket.socket]] = [
        lambda: socket.create_connection((str(broker.hostname), broker.port or 6379)),
        connect_to_the_database,
    ]
    with ExitStack() as stack:
        yield [stack.enter_context(slow_proxy(way)) for way in ways]


@pytest.fixture
def further_settings(proxies: list[SlowProxy], redis_server: RedisServer) -> dict[str, str]:
    broker, database = proxies
    url = urlsplit(redis_server.url)
    return {
        "REDIS__URL": url._replace(netloc=f"127.0.0.1:{broker.port}").geturl(),
        "DATABASE__URL": f"postgresql://postgres:@127.0.0.1:{database.port}/postgres",
    }


@pytest.mark.slow
@pytest.mark.timeout(300)  # it takes two minutes, of which one stays one on any machine
def test_a_broker_and_a_database_that_are_slow_for_long_cost_a_run_nothing(
    victim: Victim, proxies: list[SlowProxy]
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(1), seconds=60)

    for proxy in proxies:
        proxy.delay = DELAY
    slow_until = time.monotonic() + SLOW_SECONDS
    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        while time.monotonic() < slow_until:
            step = victim.client.get_run(run_id)["step"] or 0
            asked_at = time.monotonic()
            answer = http.get(f"/runs/{run_id}")
            assert (answer.status_code, time.monotonic() - asked_at < 5) == (200, True)
            victim.until(run_id, runs_as(1, beyond=step), seconds=30)
        posted = victim.start_run(steps=2)  # is done, slowly
        victim.client.cancel_run(run_id)
        run = victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    assert run["attempt"] == 1
    assert_one_at_a_time(victim.log(run_id))
    victim.until(posted, lambda run: run["status"] == "completed", seconds=75)
