"""News from Redis: the channel says that there is some, the stream says what it is.

Both carry the same events. Taking them from the stream alone gives each of them once and in
order, live and after being away, with no gap between the two. A call that gets lost costs the
time of one look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

CHANNEL: Final = "trainer:events"
STREAM: Final = "trainer:events:stream"
_AT_ONCE: Final = 500  # entries of a long absence that are read together
_RETRY_SECONDS: Final = 1.0


class Feed:
    """The stream's entries after ``last_id``; None: after what is there now."""

    def __init__(self, client: Redis, called: asyncio.Event, last_id: str | None) -> None:
        self.last_id = last_id
        self._redis = client
        self._called = called

    async def news(self, *, wait_seconds: float) -> list[str]:
        """Events that have not been returned yet; none when the time is over.

        Raises redis.RedisError while Redis is away: to be called again, nothing is lost.
        """
        if self.last_id is None:
            newest = await self._redis.xrevrange(STREAM, count=1)
            self.last_id = str(newest[0][0]) if newest else "0-0"
        self._called.clear()
        texts = await self._read(self.last_id)
        if not texts:
            waiting = asyncio.ensure_future(self._called.wait())
            await asyncio.wait([waiting], timeout=wait_seconds)
            waiting.cancel()
            texts = await self._read(self.last_id)
        return texts

    async def _read(self, after: str) -> list[str]:
        entries = await self._redis.xrange(STREAM, min=f"({after}", count=_AT_ONCE) or []
        if entries:
            self.last_id = str(entries[-1][0])
        return [str(fields["event"]) for _, fields in entries if fields]


@asynccontextmanager
async def connected(url: str, last_id: str | None) -> AsyncIterator[Feed]:
    """A feed for a while; Redis need not be there yet."""
    async with Redis.from_url(
        url, decode_responses=True, socket_timeout=10, socket_connect_timeout=5
    ) as client:
        called = asyncio.Event()
        listening = asyncio.create_task(_listen(client, called))
        try:
            yield Feed(client, called, last_id)
        finally:
            while not listening.done():  # redis-py may lose one while it connects
                listening.cancel()
                await asyncio.wait([listening], timeout=0.1)


async def _listen(client: Redis, called: asyncio.Event) -> None:
    while True:
        try:
            async with client.pubsub() as channel:
                await channel.subscribe(CHANNEL)
                async for _ in channel.listen():
                    called.set()
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_SECONDS)  # whoever reads the stream says so
