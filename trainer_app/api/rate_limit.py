"""How many requests one client may send (SECURITY__RATE_LIMIT), counted in Redis by Flask-Limiter.

A client is a valid key, or else an address: behind a proxy, which has one address, give keys.
While Redis is away this process counts by itself, so that nobody is refused for that alone.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, request
from flask_limiter import Limiter
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainer_app.api import gate
from trainer_app.settings import Settings

# The request itself may have to find out that Redis is away, too, and has 5 s in all.
_REDIS_SECONDS: Final = 0.5
_KEEPS_RETRY_AFTER: Final = frozenset({429, 503})
# What every answer has where a limit is set, for the OpenAPI document.
DOCUMENTED: Final[dict[str, object]] = {
    f"X-RateLimit-{name}": {
        "description": f"{description} Only where SECURITY__RATE_LIMIT is set.",
        "schema": {"type": "integer"},
        "example": example,
    }
    for name, description, example in (
        ("Limit", "How many requests one client may send.", 100),
        ("Remaining", "How many of them are left.", 99),
        ("Reset", "When all are there again, in unix seconds.", 1_767_225_960),
    )
}


def install(app: Flask, settings: Settings) -> None:
    """Count every request but those to the open addresses; nothing to do without a limit."""
    if not settings.security.rate_limit:
        return
    app.after_request(_tidy)  # these run last to first: after Flask-Limiter's own
    if settings.redis.enabled:
        app.config["RATELIMIT_STORAGE_OPTIONS"] = {"connection_pool": _connections(settings)}
    limiter = Limiter(
        gate.client,
        application_limits=[settings.security.rate_limit],
        strategy="moving-window",  # fixed windows let twice the number through where two meet
        storage_uri=settings.redis.url if settings.redis.enabled else "memory://",
        key_prefix=settings.jobs.queue_name,
        in_memory_fallback_enabled=True,
        headers_enabled=True,
        # Unknown addresses count as well: they, too, tell a right key from a wrong one.
        request_identifier=lambda: request.endpoint or "unknown",
    )
    limiter.request_filter(lambda: gate.is_open(request.path))
    limiter.init_app(app)


def _connections(settings: Settings) -> ConnectionPool:
    return ConnectionPool.from_url(
        settings.redis.url,
        socket_timeout=_REDIS_SECONDS,
        socket_connect_timeout=_REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _tidy(response: Response) -> Response:
    """Flask-Limiter tells everybody when to come back; only who was sent away should."""
    if response.status_code not in _KEEPS_RETRY_AFTER:
        response.headers.pop("Retry-After", None)
    return response
