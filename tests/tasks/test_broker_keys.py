"""Keys of the broker that somebody has made something else of."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from tasks import housekeeping, process
from tasks.broker_keys import SENTINEL, BrokerKeys
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

    [aside] = client.keys(f"trainer:aside:{key}:*")
    assert client.type(aside) == wrong
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

    BrokerKeys().set_right(client, QUEUES)

    assert set(client.scan_iter()) == {*OURS, *others}
    assert {key: client.type(key) for key in OURS} == OURS


def aside(client: redis.Redis) -> list[object]:
    """What was put aside of one list, the oldest first."""
    return [client.get(key) for key in sorted(client.keys("trainer:aside:trainer:*"))]


def queue_run() -> str:
    spec = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
    return runs.create(process.database(), spec, queue="trainer").run_id


def calls() -> list[bytes | str]:
    return process.redis_client().lrange("trainer\x06\x169", 0, -1)


def test_what_was_put_aside_before_stays(worker: Settings) -> None:
    del worker
    client, keys = process.redis_client(), BrokerKeys()
    for value in ("first", "second"):
        client.set("trainer", value)
        keys.set_right(client, QUEUES)
    assert aside(client) == ["first", "second"]


@pytest.mark.parametrize("key", ["trainer", SENTINEL])
def test_for_a_key_that_another_program_keeps_writing_to_nothing_is_sent_time_after_time(
    worker: Settings, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    del worker
    client = process.redis_client()
    queue_run()
    waiting = []
    for _ in range(6):
        client.delete(key)
        client.hset(key, "another", "program")
        assert housekeeping.dispatch()
        waiting.append(len(calls()))
    assert waiting == [1, 2, 3, 3, 3, 3]
    assert capsys.readouterr().out.count("another program keeps writing") == 1

    later = queue_run()
    assert housekeeping.dispatch()
    assert later in str(calls()[0])


def test_what_happened_more_than_an_hour_ago_is_no_other_program(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    del worker
    client, keys = process.redis_client(), BrokerKeys()
    hours = 0.0
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3_600 * hours)
    for hours in (0.0, 0.3, 0.6, 1.1, 1.2, 1.4):
        client.set("trainer", str(hours))
        keys.set_right(client, QUEUES)

    # the fourth is one of three within an hour, of which the fifth would be one too many
    assert aside(client) == ["0.0", "0.3", "0.6", "1.1", "1.4"]


def test_a_key_that_another_sets_right_meanwhile_stays(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    del worker
    client = process.redis_client()
    client.set("trainer", "no list")
    client.set(SENTINEL, "1")
    real = client.eval

    def after_another(script: str, number: int, *words: str) -> object:
        client.delete("trainer")
        client.lpush("trainer", "a call")
        return real(script, number, *words)

    monkeypatch.setattr(client, "eval", after_another)
    BrokerKeys().set_right(client, QUEUES)
    assert client.lrange("trainer", 0, -1) == ["a call"]
    assert (aside(client), client.get(SENTINEL)) == ([], "1")


@pytest.mark.parametrize("commands", [["-type"], ["-eval"], ["-get"]])
def test_a_user_who_may_not_look_at_keys_sends_all_the_same(
    worker: Settings, limited: redis.Redis, monkeypatch: pytest.MonkeyPatch, commands: list[str]
) -> None:
    del worker
    process.redis_client().acl_setuser("limited", enabled=True, commands=commands)
    process.redis_client().set("unacked_mutex", "1")
    monkeypatch.setattr(process, "redis_client", lambda: limited)
    run_id = queue_run()
    assert housekeeping.dispatch()
    monkeypatch.undo()
    [call] = calls()
    assert run_id in str(call)


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
        commands=["-renamenx"],
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

    BrokerKeys().set_right(limited, QUEUES)

    assert (client.get("trainer"), client.get(SENTINEL)) == ("no list", "1")


def test_a_worker_that_starts_sets_its_own_queues_right(worker: Settings) -> None:
    del worker
    client = process.redis_client()
    client.set("trainer", "no list")

    set_its_queues_right()

    assert aside(client) == ["no list"]
    assert not client.exists("trainer")


def test_a_worker_starts_while_redis_is_away(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    del worker
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()
    process.redis_client.cache_clear()

    set_its_queues_right()
