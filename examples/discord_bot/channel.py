"""The edge to Discord: one method that posts a message or edits it.

The bot never reads, so it needs no connection to Discord's gateway and no intents: it logs in and
calls the REST API, which discord.py does at the pace that Discord asks for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import aiohttp
import discord


class ChannelUnavailable(Exception):
    """Discord did not take a message; it may later."""


class Channel(Protocol):
    """Where messages go."""

    async def put(self, message_id: int | None, text: str) -> int:
        """Post a message, or edit the one with this id; the id of what is there now.

        A message that is gone is posted anew. Raises ChannelUnavailable.
        """
        ...


class DiscordChannel:
    """A channel of a Discord server."""

    def __init__(self, channel: discord.PartialMessageable) -> None:
        self._channel = channel

    async def put(self, message_id: int | None, text: str) -> int:
        """See Channel."""
        try:
            if message_id is not None and await self._edit(message_id, text):
                return message_id
            return (await self._channel.send(text, suppress_embeds=True)).id
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            raise ChannelUnavailable(f"{type(error).__name__}: {error}") from error

    async def _edit(self, message_id: int, text: str) -> bool:
        try:
            await self._channel.get_partial_message(message_id).edit(content=text)
        except discord.NotFound:
            return False
        return True


@asynccontextmanager
async def discord_channel(token: str, channel_id: int) -> AsyncIterator[DiscordChannel]:
    """Log in for a while. Raises discord.LoginFailure when the token is wrong."""
    client = discord.Client(
        intents=discord.Intents.none(),
        allowed_mentions=discord.AllowedMentions.none(),  # whatever a text holds, nobody is pinged
    )
    async with client:
        await client.login(token)
        yield DiscordChannel(client.get_partial_messageable(channel_id))
