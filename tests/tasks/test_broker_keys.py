"""Keys of the broker that somebody has made something else of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks import housekeeping, process
from tasks.broker_keys import SENTINEL, set_right
from tasks.worker import set_its_queues_right
from trainer_app import events
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import runs

OURS = {
    "trainer": "list",
    "trainer\x06\x163": "list",
    "trainer\x06\x166": "list",
    "trainer\x06\x169": "list",
    "trainer.inference": "list",
    "trainer.light": "list",
    "trainer.light\x06\x169": "list",
    "unacked": "hash",
    "unacked_index": "zset",
    "unacked_mutex": "string",
    "_kombu.binding.trainer": "set",
    "_kombu.binding.celery.pidbox": "set",
    "_kombu.binding.celeryev": "set",
    "_kombu.binding_permanent.trainer.light": "set",
    "_kombu.binding_deadlines": "zset",
    SENTINEL: "string",
    events.STREAM: "stream",
}
QUEUES = ("trainer", "trainer.inference", "trainer.light")


def fill(client: redis.Redis, key: str, kind: str) -> None:
    """Make a key of a type, unless it is there."""
    match kind:
        case "list":
            client.lpush(key, "x")
        case "hash":
            client.hset(key, "x", "1")
        case "zset":
            client.zadd(key, {"x": 1.0})
        case "set":
            client.sadd(key, "x")
        case "stream":
            client.xadd(key, {"x": "1"})
        case _:
            client.set(key, "1")


@pytest.mark.parametrize("key", OURS)
def test_a_key_of_an_impossible_type_makes_way_and_what_is_queued_is_sent(
    worker: Settings, key: str
) -> None:
    del worker
    client = process.redis_client()
    run_id = runs.create(
        process.database(), TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt"), queue="trainer"
    ).run_id
    assert housekeeping.dispatch()
    client.delete(*(OURS.keys() - {SENTINEL}), key)
    wrong = "hash" if OURS[key] == "set" else "set"
    fill(client, key, wrong)

    assert housekeeping.dispatch()

    assert client.type(f"trainer:aside:{key}") == wrong
    [call] = client.lrange("trainer\x06\x169", 0, -1)
    assert run_id in call


def test_keys_that_are_right_or_not_ours_stay(worker: Settings) -> None:
    del worker
    client = process.redis_client()
    others = ("_kombu.binding.other", "trainer2", "trainer.other", "celery", "other")
    for key, kind in OURS.items():
        fill(client, key, kind)
    for key in others:
        fill(client, key, "string")

    set_right(client, QUEUES)

    assert set(client.scan_iter()) == {*OURS, *others}
    assert {key: client.type(key) for key in OURS} == OURS


@pytest.fixture
def limited(worker: Settings) -> Iterator[redis.Redis]:
    """The same server, for a user who may rename nothing."""
    client = process.redis_client()
    client.acl_setuser(
        "limited",
        enabled=True,
        passwords=["+word"],
        keys=["*"],
        categories=["+@all"],
        commands=["-rename"],
    )
    with redis.Redis.from_url(
        worker.redis.url, username="limited", password="word", decode_responses=True
    ) as other:
        yield other
    client.acl_deluser("limited")


def test_for_a_key_that_cannot_be_renamed_nothing_is_sent_again(limited: redis.Redis) -> None:
    client = process.redis_client()
    client.set("trainer", "no list")
    client.set(SENTINEL, "1")

    set_right(limited, QUEUES)

    assert (client.get("trainer"), client.get(SENTINEL)) == ("no list", "1")


def test_a_worker_that_starts_sets_its_own_queues_right(worker: Settings) -> None:
    del worker
    client = process.redis_client()
    client.set("trainer", "no list")

    set_its_queues_right()

    assert client.get("trainer:aside:trainer") == "no list"
    assert not client.exists("trainer")


def test_a_worker_starts_while_redis_is_away(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    del worker
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()
    process.redis_client.cache_clear()

    set_its_queues_right()
