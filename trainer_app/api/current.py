"""What the running application holds for its requests: settings, database, queue, followers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from flask import current_app

from trainer_app.queue import Queue
from trainer_app.settings import Settings
from trainer_app.store.database import Database

if TYPE_CHECKING:
    from flask import Flask

_KEY: Final = "trainer"
_T = TypeVar("_T")


def install(app: Flask, *services: object) -> None:
    """Hand the application what its requests use, one object of each type."""
    app.extensions[_KEY] = {type(service): service for service in services}


def service(kind: type[_T]) -> _T:
    """The installed object of this type."""
    found = current_app.extensions[_KEY][kind]
    assert isinstance(found, kind)
    return found


def settings() -> Settings:
    """The settings that the application was made with."""
    return service(Settings)


def database() -> Database:
    """The database of the application."""
    return service(Database)


def queue() -> Queue:
    """The queue of the application."""
    return service(Queue)
