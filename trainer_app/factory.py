"""Puts the web application together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flask import Flask, redirect
from flask.json.provider import DefaultJSONProvider

from trainer_app.api import (
    artifacts,
    chat,
    corpora,
    current,
    dates,
    errors,
    evaluate,
    gate,
    generate,
    headers,
    health,
    logs,
    metrics,
    openapi,
    rate_limit,
    request_id,
    runs,
    score,
    tokenizers,
)
from trainer_app.api.corpus_choice import KnownFiles
from trainer_app.api.streams import Followers
from trainer_app.chat_sessions import ChatSessions
from trainer_app.events import Publisher, connect
from trainer_app.queue import Queue
from trainer_app.settings import Settings, load_settings
from trainer_app.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from werkzeug.wrappers import Response

# A request that finds the database locked or away is answered within 5 s, Redis' 2 s included.
_DATABASE_WAIT_SECONDS: Final = 3.0
_RESOURCES: Final = (
    health,
    corpora,
    tokenizers,
    runs,
    evaluate,
    score,
    generate,
    chat,
    artifacts,
    logs,
    metrics,
)


def create_app(settings: Settings | None = None) -> Flask:
    """The application; raises SettingsError where it would stand open to the network."""
    settings = settings or load_settings()
    gate.check_exposure(settings)
    app = _Application("trainer_app", static_folder=None)
    app.json = OrderedJson(app)
    app.url_map.merge_slashes = False  # a redirect is an answer without our error body
    install_services(app, settings)
    request_id.install(app)
    rate_limit.install(app, settings)  # before the gate: guesses at keys are counted, too
    gate.install(app)
    headers.install(app)
    dates.install(app)
    api = openapi.install(app)
    errors.install(app)  # after flask-smorest's own handler, which it replaces
    for resource in _RESOURCES:
        api.register_blueprint(resource.blueprint)
    openapi.publish(app, api, keyed=bool(settings.security.api_keys))
    app.add_url_rule("/", view_func=_home)
    return app


def install_services(app: Flask, settings: Settings) -> None:
    """Let the application's requests use what these settings name, in place of what they used."""
    database = Database(settings.database_url, wait_seconds=_DATABASE_WAIT_SECONDS)
    followers = Followers(database, settings.api.threads)
    chats = ChatSessions(connect(settings))
    publisher = Publisher(connect(settings))
    current.install(
        app, settings, database, Queue(settings), followers, KnownFiles(), chats, publisher
    )


class _Application(Flask):
    """Flask, whose router gets each request as this API takes it."""

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request.

        An empty path, as in the target ``http://name``, is that of the root (RFC 9110, 4.2.3): the
        router would send the client there. An upgrade is not to be had, and may be ignored (7.8):
        it would refuse that of a web socket.
        """
        environ["PATH_INFO"] = environ.get("PATH_INFO") or "/"
        environ.pop("HTTP_UPGRADE", None)
        return super().wsgi_app(environ, start_response)


class OrderedJson(DefaultJSONProvider):
    """JSON as short as it gets, fields in the order of their schema."""

    sort_keys = False
    compact = True


def _home() -> Response:
    return redirect("/docs")
