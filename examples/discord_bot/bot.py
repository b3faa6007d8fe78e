"""The loop: read what is new, and bring the messages of the runs up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

import redis

from examples.discord_bot.board import Board, Card
from examples.discord_bot.channel import Channel, ChannelUnavailable
from examples.discord_bot.events import MalformedEvent, decode
from examples.discord_bot.feed import Feed
from examples.discord_bot.render import render

_EDIT_SECONDS: Final = 2.0  # between two edits of a message: Discord allows five in five seconds
_RETRY_SECONDS: Final = 10.0  # after Discord refused
_TICK_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


class Bot:
    """Shows the runs of one service in one channel; ``state`` is the file that outlives it."""

    def __init__(
        self, feed: Feed, channel: Channel, board: Board, state: Path, *, pace: float = 1.0
    ) -> None:
        self._feed = feed
        self._channel = channel
        self._board = board
        self._state = state
        self._pace = pace  # 1.0; smaller in tests, which have no Discord to wait for
        self._saved = ""  # what the file holds
        self._not_before: dict[str, float] = {}  # when a card may be shown again

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop`` is set; a turn that has begun is finished, and its state kept."""
        while not stop.is_set():
            await self.turn()

    async def turn(self) -> None:
        """Take in what is new, or wait a moment for it, and show it."""
        for text in await self._news():
            try:
                event = decode(text)
            except MalformedEvent as error:
                _log.warning("an event was left out: %s", error)
                continue
            if event is not None:  # else of a type that came after this bot
                self._board.apply(event)
        for card in list(self._board.cards.values()):
            await self._show(card)
        self._board.last_id = self._feed.last_id
        self._save()

    async def _news(self) -> list[str]:
        try:
            return await self._feed.news(wait_seconds=_TICK_SECONDS * self._pace)
        except (redis.RedisError, OSError) as error:
            _log.warning("Redis does not answer: %s", error)
            await asyncio.sleep(_RETRY_SECONDS * self._pace)
            return []

    async def _show(self, card: Card) -> None:
        text = render(card)
        if text == card.shown or time.monotonic() < self._not_before.get(card.job_id, 0.0):
            return
        try:
            card.message_id = await self._channel.put(card.message_id, text)
        except ChannelUnavailable as error:
            _log.warning("Discord did not take a message: %s", error)
            wait = _RETRY_SECONDS
        else:
            card.shown = text
            wait = _EDIT_SECONDS
        self._not_before[card.job_id] = time.monotonic() + wait * self._pace

    def _save(self) -> None:
        """Whole or not at all: a kill at any moment leaves a file that can be read."""
        text = self._board.to_json()
        if text == self._saved:
            return
        new = self._state.with_name(f"{self._state.name}.new")
        new.write_text(text, "utf-8")
        new.replace(self._state)
        self._saved = text


def load(state: Path) -> Board:
    """The board as it was when the bot stopped; an empty one at first."""
    return Board.from_json(state.read_text("utf-8")) if state.exists() else Board()
