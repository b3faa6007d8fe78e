"""``python -m examples.discord_bot``: settings come from the environment, see README.md."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import discord

from examples.discord_bot.bot import Bot, load
from examples.discord_bot.channel import discord_channel
from examples.discord_bot.feed import connected


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the bot must be told."""

    token: str
    channel_id: int
    redis_url: str
    state: Path


def read_settings() -> Settings:
    """Exits with one line when a variable is missing or wrong."""
    channel_id = os.environ.get("DISCORD_CHANNEL_ID", "")
    if not os.environ.get("DISCORD_TOKEN"):
        sys.exit("DISCORD_TOKEN: must be the token of a bot")
    if not (channel_id.isascii() and channel_id.isdigit()):
        sys.exit("DISCORD_CHANNEL_ID: must be the number of a channel")
    return Settings(
        token=os.environ["DISCORD_TOKEN"],
        channel_id=int(channel_id),
        redis_url=os.environ.get("REDIS__URL", "redis://127.0.0.1:6379/0"),
        state=Path(os.environ.get("DISCORD_STATE_FILE", "discord-bot.json")),
    )


async def main(settings: Settings) -> None:
    """Show runs until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    board = load(settings.state)
    async with (
        discord_channel(settings.token, settings.channel_id) as channel,
        connected(settings.redis_url, board.last_id) as feed,
    ):
        await Bot(feed, channel, board, settings.state).run(stop)


def run() -> None:
    """Run the bot; what it cannot start without is one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("discord.client", "discord.state"):
        # They miss what a bot needs that listens and speaks.
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = read_settings()
    try:
        asyncio.run(main(settings))
    except discord.LoginFailure:
        sys.exit("DISCORD_TOKEN: Discord refuses it")


if __name__ == "__main__":
    run()
