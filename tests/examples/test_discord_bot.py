"""The bot with a real Redis and the service's own publisher; Discord is a server of the tests."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import discord.http
import pytest
import redis
from aiohttp import web

from examples.discord_bot import __main__ as program
from examples.discord_bot import feed as feeds
from examples.discord_bot.board import Board
from examples.discord_bot.bot import Bot, load
from examples.discord_bot.channel import ChannelUnavailable, discord_channel
from trainer_app import events
from trainer_app.events import JobEvents, Publisher

ROOT = Path(__file__).parents[2]
PACE = 0.02  # of the waits that Discord asks for


@dataclass(slots=True)
class FakeChannel:
    """Takes messages as a channel does, and remembers when."""

    messages: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    refusals: int = 0  # to come

    async def put(self, message_id: int | None, text: str) -> int:
        if self.refusals:
            self.refusals -= 1
            raise ChannelUnavailable("not now")
        number = message_id or len(self.messages) + 1
        self.messages.setdefault(number, []).append((time.monotonic(), text))
        return number

    @property
    def texts(self) -> list[str]:
        """What is to be read there now."""
        return [versions[-1][1] for versions in self.messages.values()]


@pytest.fixture
def channel() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "bot.json"


@pytest.fixture
def service(redis_url: str) -> Iterator[Publisher]:
    """What a worker sends its events with."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        publisher = Publisher(client)
        yield publisher
        publisher.close()


def run_of(service: Publisher, run_id: str = "run-1") -> JobEvents:
    return JobEvents(service, job_id=run_id, user_id=7, queue_name="trainer")


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    url: str, channel: FakeChannel, state: Path, *, pace: float = PACE
) -> AsyncIterator[Bot]:
    """The bot, from its start, when it listens, to its end."""
    board = load(state)
    async with feeds.connected(url, board.last_id) as feed:
        bot = Bot(feed, channel, board, state, pace=pace)
        await bot.turn()
        stop = asyncio.Event()
        task = asyncio.ensure_future(bot.run(stop))
        try:
            yield bot
        finally:
            stop.set()
            await task


def test_a_run_is_one_message_that_follows_it(
    redis_url: str, channel: FakeChannel, state: Path, service: Publisher
) -> None:
    async def scene() -> None:
        run = run_of(service)
        async with running(redis_url, channel, state):
            run.started()
            await until(lambda: "trains" in "".join(channel.texts))
            run.progress(50, "step 5 of 10")
            await until(lambda: "50 %" in channel.texts[0])
            run.completed(result_id="run-1", result_bytes=10)
            run.metrics_completed({"test_loss": 1.5, "test_ppl": 4.5, "artifact_path": "/a"})
            await until(lambda: "test loss 1.5" in channel.texts[0])

    asyncio.run(scene())
    assert len(channel.messages) == 1
    assert "has finished" in channel.texts[0]


def test_a_message_is_not_edited_more_often_than_discord_likes(
    redis_url: str, channel: FakeChannel, state: Path, service: Publisher
) -> None:
    async def scene() -> None:
        async with running(redis_url, channel, state, pace=0.25):
            for percent in range(60):
                JobEvents(service, job_id="run-1", user_id=7, queue_name="q").progress(percent, "")
                await asyncio.sleep(0.02)
            await until(lambda: "59 %" in "".join(channel.texts))

    asyncio.run(scene())
    times = [when for when, _ in channel.messages[1]]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 0.5  # two seconds at this pace
    assert len(times) < 10


def test_what_happened_while_it_was_away_is_caught_up_with_in_the_same_message(
    redis_url: str, channel: FakeChannel, state: Path, service: Publisher
) -> None:
    async def before() -> None:
        async with running(redis_url, channel, state):
            run_of(service).started()
            await until(lambda: bool(channel.messages))

    async def after() -> None:
        async with running(redis_url, channel, state):
            await until(lambda: "was cancelled" in channel.texts[0])

    asyncio.run(before())
    run_of(service).failed("user", "cancelled")
    run_of(service, "run-2").started()
    asyncio.run(after())
    assert ["run\\-1" in text for text in channel.texts] == [True, False]


def test_what_happened_before_it_first_came_is_not_posted(
    redis_url: str, channel: FakeChannel, state: Path, service: Publisher
) -> None:
    run_of(service, "run-old").started()
    service.close()

    async def scene() -> None:
        async with running(redis_url, channel, state):
            with redis.Redis.from_url(redis_url) as client:
                publisher = Publisher(client)
                run_of(publisher, "run-new").started()
                publisher.close()
            await until(lambda: bool(channel.messages))

    asyncio.run(scene())
    assert len(channel.texts) == 1
    assert "run\\-new" in channel.texts[0]


def test_a_malformed_event_is_logged_and_an_unknown_one_ignored(
    redis_url: str,
    channel: FakeChannel,
    state: Path,
    service: Publisher,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with running(redis_url, channel, state):
            with redis.Redis.from_url(redis_url) as client:
                for text in ("{", '{"type":"trainer.job.started.v9"}'):
                    client.publish(events.CHANNEL, text)
                    client.xadd(events.STREAM, {"event": text})
            run_of(service).started()
            await until(lambda: bool(channel.messages))

    asyncio.run(scene())
    left_out = [record for record in caplog.records if "left out" in record.message]
    assert len(left_out) == 1


def test_a_message_that_discord_refuses_is_sent_again_later(
    redis_url: str, channel: FakeChannel, state: Path, service: Publisher
) -> None:
    channel.refusals = 2

    async def scene() -> None:
        async with running(redis_url, channel, state):
            run_of(service).started()
            await until(lambda: bool(channel.messages))

    asyncio.run(scene())
    assert channel.refusals == 0


def test_a_redis_that_is_away_is_waited_for(
    channel: FakeChannel, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with running("redis://127.0.0.1:1/0", channel, state) as bot:
            await bot.turn()

    asyncio.run(scene())
    assert "Redis does not answer" in caplog.text
    assert load(state) == Board()


@dataclass(slots=True)
class FakeDiscord:
    """Discord's REST API, as much of it as the bot calls."""

    url: str = ""
    token: str = "right"
    requests: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    gone: bool = False  # messages that were posted have been deleted
    broken: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bot {self.token}":
            return _json({"message": "401: Unauthorized", "code": 0}, status=401)
        if request.path.endswith("/@me"):
            return _json(_user() | _application())
        body: dict[str, object] = await request.json()
        self.requests.append((request.method, request.path, body))
        if self.broken:
            return _json({"message": "Missing Access", "code": 50001}, status=403)
        if self.gone and request.method == "PATCH":
            return _json({"message": "Unknown Message", "code": 10008}, status=404)
        return _json(_message(str(body["content"])))


def _json(values: object, status: int = 200) -> web.Response:
    # Discord names no charset, and discord.py expects none.
    body = json.dumps(values).encode()
    return web.Response(body=body, content_type="application/json", status=status)


def _user() -> dict[str, object]:
    return {"id": "1", "username": "trainer", "discriminator": "0", "avatar": None, "bot": True}


def _application() -> dict[str, object]:
    texts = {"name": "trainer", "description": "", "verify_key": "", "icon": None}
    return texts | {"owner": _user(), "bot_public": False, "bot_require_code_grant": False}


def _message(content: str) -> dict[str, object]:
    lists: dict[str, object] = {
        name: [] for name in ("mentions", "mention_roles", "attachments", "embeds", "components")
    }
    return lists | {
        "id": "77",
        "channel_id": "5",
        "author": _user(),
        "content": content,
        "timestamp": "2026-01-01T00:00:00+00:00",
        "edited_timestamp": None,
        "tts": False,
        "mention_everyone": False,
        "pinned": False,
        "type": 0,
    }


@asynccontextmanager
async def fake_discord(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDiscord]:
    fake = FakeDiscord()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    monkeypatch.setattr(discord.http.Route, "BASE", f"http://{host}:{port}/api")
    try:
        yield fake
    finally:
        await runner.cleanup()


def played(scene: Coroutine[object, object, None]) -> None:
    asyncio.run(scene)


def test_a_message_is_posted_then_edited_and_pings_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        async with fake_discord(monkeypatch) as fake, discord_channel("right", 5) as channel:
            number = await channel.put(None, "one")
            assert await channel.put(number, "two") == number == 77
            posted, edited = fake.requests
            assert posted[:2] == ("POST", "/api/channels/5/messages")
            assert edited[:2] == ("PATCH", "/api/channels/5/messages/77")
            assert [body["content"] for *_, body in fake.requests] == ["one", "two"]
            for *_, body in fake.requests:
                assert body["allowed_mentions"] == {"parse": []}

    played(scene())


def test_a_message_that_was_deleted_is_posted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with fake_discord(monkeypatch) as fake, discord_channel("right", 5) as channel:
            fake.gone = True
            await channel.put(76, "text")
            assert [method for method, *_ in fake.requests] == ["PATCH", "POST"]

    played(scene())


def test_a_channel_that_may_not_be_written_to_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        async with fake_discord(monkeypatch) as fake, discord_channel("right", 5) as channel:
            fake.broken = True
            with pytest.raises(ChannelUnavailable, match="Missing Access"):
                await channel.put(None, "text")

    played(scene())


@pytest.fixture
def environment(redis_url: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "right")
    monkeypatch.setenv("DISCORD_CHANNEL_ID", "5")
    monkeypatch.setenv("DISCORD_STATE_FILE", str(state))
    monkeypatch.setenv("REDIS__URL", redis_url)


@pytest.mark.usefixtures("environment")
def test_the_whole_bot_shows_a_run_and_stops_at_sigterm(
    monkeypatch: pytest.MonkeyPatch, service: Publisher, state: Path
) -> None:
    async def scene() -> None:
        async with fake_discord(monkeypatch) as fake:
            bot = asyncio.ensure_future(program.main(program.read_settings()))
            await until(state.exists)
            run_of(service).started()
            await until(lambda: bool(fake.requests))
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(bot, 10)
            assert "run\\-1" in str(fake.requests[0][2]["content"])

    played(scene())
    assert json.loads(state.read_text())["cards"]["run-1"]["message_id"] == 77


@pytest.mark.usefixtures("environment")
def test_a_token_that_discord_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "wrong")
    real = program.main

    async def main(settings: program.Settings) -> None:
        async with fake_discord(monkeypatch):
            await real(settings)

    monkeypatch.setattr(program, "main", main)
    with pytest.raises(SystemExit, match=r"^DISCORD_TOKEN: Discord refuses it$"):
        program.run()
    logging.getLogger("discord").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("name", "value"),
    [("DISCORD_TOKEN", ""), ("DISCORD_CHANNEL_ID", ""), ("DISCORD_CHANNEL_ID", "general")],
)
def test_a_setting_that_is_missing_or_wrong_is_one_line(name: str, value: str) -> None:
    given = {"DISCORD_TOKEN": "right", "DISCORD_CHANNEL_ID": "5", name: value}
    done = subprocess.run(
        [sys.executable, "-m", "examples.discord_bot"],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: ")
    assert len(done.stderr.splitlines()) == 1
