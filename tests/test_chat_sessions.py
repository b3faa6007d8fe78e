"""Chats in Redis: there for an hour, then not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from trainer_app.chat_sessions import SESSION_SECONDS, ChatSessions, Turn
from trainer_app.errors import DataNotFound, Unavailable

TURN = Turn(request_id="chat-1", message="a")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """Redis itself."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def sessions(redis_url: str) -> Iterator[ChatSessions]:
    """The chats of an empty Redis."""
    sessions = ChatSessions(redis.Redis.from_url(redis_url, decode_responses=True))
    yield sessions
    sessions.close()


def key(client: redis.Redis) -> str:
    [name] = client.keys()
    return str(name)


def test_a_session_begins_without_turns_and_belongs_to_its_run(sessions: ChatSessions) -> None:
    session = sessions.begin("run-1")
    assert session.turns == ()
    assert sessions.get("run-1", session.session_id) == session
    with pytest.raises(DataNotFound):
        sessions.get("run-2", session.session_id)
    with pytest.raises(DataNotFound):
        sessions.get("run-1", "session-none")


def test_turns_come_in_the_order_of_their_requests(sessions: ChatSessions) -> None:
    session_id = sessions.begin("run-1").session_id
    made = [Turn(request_id=f"chat-{n:02}", message=str(n), response="\n\0") for n in range(70)]
    for turn in reversed(made):
        assert sessions.put(session_id, turn)
    assert sessions.get("run-1", session_id).turns == tuple(made)


def test_an_announcement_never_overwrites_an_answer(sessions: ChatSessions) -> None:
    session_id = sessions.begin("run-1").session_id
    assert sessions.announce(session_id, TURN)
    assert sessions.get("run-1", session_id).turns == (TURN,)
    answered = Turn(request_id="chat-1", message="a", response="b")
    assert sessions.put(session_id, answered)
    assert sessions.announce(session_id, TURN)
    assert sessions.get("run-1", session_id).turns == (answered,)


def test_a_session_is_gone_an_hour_after_its_last_turn(
    sessions: ChatSessions, client: redis.Redis
) -> None:
    session_id = sessions.begin("run-1").session_id
    assert SESSION_SECONDS == 3_600
    for act in (sessions.announce, sessions.put):
        client.expire(key(client), 10)
        act(session_id, TURN)
        assert SESSION_SECONDS - 5 < client.ttl(key(client)) <= SESSION_SECONDS
    client.pexpire(key(client), 1)
    while client.keys():
        pass
    with pytest.raises(DataNotFound):
        sessions.get("run-1", session_id)


def test_a_new_session_that_is_never_used_is_forgotten_too(
    sessions: ChatSessions, client: redis.Redis
) -> None:
    sessions.begin("run-1")
    assert 0 < client.ttl(key(client)) <= SESSION_SECONDS


def test_nothing_is_written_into_a_session_that_was_deleted(
    sessions: ChatSessions, client: redis.Redis
) -> None:
    session_id = sessions.begin("run-1").session_id
    sessions.forget(session_id)
    assert not sessions.put(session_id, TURN)
    assert not sessions.announce(session_id, TURN)
    assert client.keys() == []


@pytest.mark.parametrize(
    "act",
    [
        lambda sessions: sessions.begin("run-1"),
        lambda sessions: sessions.get("run-1", "session-1"),
        lambda sessions: sessions.put("session-1", TURN),
        lambda sessions: sessions.forget("session-1"),
    ],
)
def test_redis_that_is_away_is_told(act: Callable[[ChatSessions], object]) -> None:
    sessions = ChatSessions(redis.Redis.from_url("redis://127.0.0.1:1/0"))
    with pytest.raises(Unavailable):
        act(sessions)
    sessions.close()
