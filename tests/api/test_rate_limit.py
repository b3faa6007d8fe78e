"""Rate limits: who is counted, what the one too many gets, and that nobody waits for Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from flask.testing import FlaskClient

from tests.conftest import RedisServer
from trainer_app.settings import Settings

Make = Callable[[Settings], FlaskClient]


def limited(settings: Settings, rate_limit: str, *keys: str) -> Settings:
    security = replace(settings.security, rate_limit=rate_limit, api_keys=keys)
    return replace(settings, security=security)


def statuses(client: FlaskClient, count: int, path: str = "/runs", **headers: str) -> list[int]:
    sent = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return [client.get(path, headers=sent).status_code for _ in range(count)]


def test_there_is_no_limit_unless_one_is_set(client: FlaskClient) -> None:
    assert statuses(client, 50) == [200] * 50
    assert "X-RateLimit-Limit" not in client.get("/runs").headers


def test_one_too_many_is_told_when_to_come_back(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "3/minute"))

    assert statuses(client, 3) == [200] * 3
    refused = client.get("/runs")

    assert (refused.status_code, refused.get_json()["code"]) == (429, "RATE_LIMITED")
    assert "3 per 1 minute" in refused.get_json()["message"]
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["X-RateLimit-Limit"] == "3"
    assert refused.headers["X-RateLimit-Remaining"] == "0"


def test_an_answer_says_how_many_are_left_and_not_to_come_back_later(
    settings: Settings, make_client: Make
) -> None:
    response = make_client(limited(settings, "3/minute")).get("/runs")

    assert response.headers["X-RateLimit-Limit"] == "3"
    assert response.headers["X-RateLimit-Remaining"] == "2"
    assert 0 < int(response.headers["X-RateLimit-Reset"]) - time.time() <= 61
    assert "Retry-After" not in response.headers


def test_the_limit_ends_with_its_window(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "1/second"))

    assert statuses(client, 2) == [200, 429]
    time.sleep(1.1)
    assert statuses(client, 2) == [200, 429]


def test_of_several_limits_the_strictest_counts(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "100/second;2/day"))
    assert statuses(client, 3) == [200, 200, 429]


def test_all_addresses_count_together_unknown_ones_included(
    settings: Settings, make_client: Make
) -> None:
    client = make_client(limited(settings, "3/minute"))
    assert statuses(client, 1) + statuses(client, 1, "/tokenizers") == [200, 200]
    assert statuses(client, 2, "/nowhere") == [404, 429]


def test_each_key_has_a_limit_of_its_own(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "2/minute", "one", "two"))

    assert statuses(client, 3, X_Api_Key="one") == [200, 200, 429]
    assert statuses(client, 3, X_Api_Key="two") == [200, 200, 429]


def test_guesses_at_keys_are_counted_by_address(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "3/minute", "one"))

    guesses = [statuses(client, 1, X_Api_Key=f"guess-{number}") for number in range(3)]
    assert guesses == [[403]] * 3
    assert statuses(client, 1, X_Api_Key="guess-4") == [429]
    assert statuses(client, 1, X_Api_Key="one") == [200]


def test_each_address_has_a_limit_of_its_own(settings: Settings, make_client: Make) -> None:
    limited_settings = limited(settings, "1/minute")
    opened = replace(limited_settings.security, allow_open=True)
    client = make_client(replace(limited_settings, security=opened))
    for address in ("10.0.0.1", "10.0.0.2"):
        answers = [
            client.get("/runs", environ_overrides={"REMOTE_ADDR": address}).status_code
            for _ in range(2)
        ]
        assert answers == [200, 429]


def test_a_client_without_an_address_is_counted(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "1/minute"))
    answers = [
        client.get("/runs", environ_overrides={"REMOTE_ADDR": ""}).status_code for _ in range(2)
    ]
    assert answers == [200, 429]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/readyz", 503), ("/docs", 200), ("/openapi.json", 200)],
)
def test_probes_and_documentation_are_not_counted(
    settings: Settings, make_client: Make, path: str, status: int
) -> None:
    client = make_client(limited(settings, "1/minute"))
    assert statuses(client, 3, path) == [status] * 3
    assert statuses(client, 1) == [200]


def test_all_processes_count_together(settings: Settings, make_client: Make) -> None:
    first, second = (make_client(limited(settings, "2/minute")) for _ in range(2))
    assert statuses(first, 1) + statuses(second, 1) + statuses(first, 1) == [200, 200, 429]


def test_no_key_is_kept_in_redis(settings: Settings, make_client: Make) -> None:
    client = make_client(limited(settings, "2/minute", "secret"))
    statuses(client, 1, X_Api_Key="secret")
    with redis.Redis.from_url(settings.redis.url, decode_responses=True) as connection:
        names = connection.keys()
    assert names
    assert not any("secret" in name for name in names)


def test_while_redis_is_away_each_process_counts_by_itself(
    settings: Settings, make_client: Make
) -> None:
    away = replace(settings.redis, url="redis://127.0.0.1:1/0")
    client = make_client(limited(replace(settings, redis=away), "2/minute"))
    assert statuses(client, 3) == [200, 200, 429]


def test_a_hung_redis_refuses_nobody_and_holds_nobody_up(
    settings: Settings, make_client: Make, redis_server: RedisServer
) -> None:
    client = make_client(limited(settings, "100/minute"))
    assert statuses(client, 1) == [200]
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert statuses(client, 1) == [200]
        assert time.monotonic() - began < 2.5
    finally:
        redis_server.process.send_signal(signal.SIGCONT)


def test_with_redis_switched_off_the_limit_holds(settings: Settings, make_client: Make) -> None:
    off = replace(settings, redis=replace(settings.redis, enabled=False))
    client = make_client(limited(off, "2/minute"))
    assert statuses(client, 3) == [200, 200, 429]
