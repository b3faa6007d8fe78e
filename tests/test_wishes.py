"""Cancellations in Redis: set by hand, or announced with the attempt that is meant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from trainer_app import wishes
from trainer_app.wishes import Wish, cancelled_key, up_to_key


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as opened:
        yield opened


@pytest.mark.parametrize("wish", [Wish(), Wish(up_to=3)])
def test_what_was_put_can_be_taken_once(client: redis.Redis, wish: Wish) -> None:
    wishes.put(client, "run-1", wish)

    assert client.get(cancelled_key("run-1")) == "1"
    assert wishes.take(client, "run-1") == wish
    assert wishes.take(client, "run-1") is None
    assert client.dbsize() == 0


def test_a_wish_of_any_attempt_leaves_nothing_of_an_earlier_one(client: redis.Redis) -> None:
    wishes.put(client, "run-1", Wish(up_to=3))
    wishes.put(client, "run-1", Wish())

    assert wishes.take(client, "run-1") == Wish()


def test_what_is_set_by_hand_is_meant_for_every_attempt(client: redis.Redis) -> None:
    client.set(cancelled_key("run-1"), "1")

    wish = wishes.take(client, "run-1")

    assert wish is not None
    assert all(wish.is_for(attempt) for attempt in (1, 2, 1_000))


def test_what_is_announced_is_meant_for_no_attempt_that_began_later() -> None:
    assert [Wish(up_to=2).is_for(attempt) for attempt in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", "٢", "9" * 5_000])
def test_what_is_no_attempt_says_nothing_of_whom_is_meant(client: redis.Redis, value: str) -> None:
    client.set(cancelled_key("run-1"), "1")
    client.set(up_to_key("run-1"), value)

    assert wishes.take(client, "run-1") == Wish()


@pytest.mark.parametrize("seconds", [None, 60, 86_390, 604_800])
def test_what_is_set_by_hand_is_no_announcement_though_one_stands_beside_it(
    client: redis.Redis, seconds: int | None
) -> None:
    wishes.put(client, "run-1", Wish(up_to=3))
    client.set(cancelled_key("run-1"), "1", ex=seconds)

    assert wishes.take(client, "run-1") == Wish()


def test_a_key_of_another_kind_is_no_wish(client: redis.Redis) -> None:
    client.rpush(cancelled_key("run-1"), "1")

    assert wishes.take(client, "run-1") is None


@pytest.mark.parametrize("seconds", [None, 60])
def test_a_late_announcement_is_dropped_but_nothing_that_was_set_since(
    client: redis.Redis, seconds: int | None
) -> None:
    wishes.put(client, "run-1", Wish(up_to=3))
    client.set(cancelled_key("run-1"), "1", ex=seconds)
    wishes.drop(client, "run-1", Wish(up_to=3))
    assert wishes.take(client, "run-1") == Wish()

    wishes.put(client, "run-1", Wish(up_to=4))
    wishes.drop(client, "run-1", Wish(up_to=3))
    assert client.get(cancelled_key("run-1")) == "1"
    wishes.drop(client, "run-1", Wish(up_to=4))
    assert client.dbsize() == 0


@pytest.mark.parametrize("value", ["", "0", "11", "true"])
def test_anything_but_a_one_is_no_wish(client: redis.Redis, value: str) -> None:
    client.set(cancelled_key("run-1"), value)

    assert wishes.take(client, "run-1") is None


@pytest.mark.parametrize("beside", [None, "3", "two"])
def test_what_was_set_by_hand_is_dropped_with_all_that_stands_beside_it(
    client: redis.Redis, beside: str | None
) -> None:
    client.set(cancelled_key("run-1"), "1")
    if beside is not None:
        client.set(up_to_key("run-1"), beside, ex=60)
    wish = wishes.find(client, "run-1")
    assert wish == wishes.find(client, "run-1") == Wish()

    wishes.put(client, "run-1", Wish(up_to=3))
    wishes.drop(client, "run-1", wish)  # another, since
    assert wishes.find(client, "run-1") == Wish(up_to=3)

    client.set(cancelled_key("run-1"), "1")
    wishes.drop(client, "run-1", wish)
    assert client.dbsize() == 0
