"""The probes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.read_only import read_only
from trainer_app.settings import Settings
from trainer_app.store.database import Database

if TYPE_CHECKING:
    from tests.api.conftest import World


def test_a_process_that_answers_is_healthy(client: FlaskClient) -> None:
    assert client.get("/healthz").get_json() == {"status": "ok"}


def test_it_is_ready_with_redis_a_database_and_a_training_worker(
    client: FlaskClient, world: World
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.get_json() == {"status": "ready", "reason": None}


@pytest.mark.parametrize("queues", [(), ("trainer.inference",)])
def test_without_a_training_worker_it_is_degraded(
    client: FlaskClient, world: World, queues: tuple[str, ...]
) -> None:
    if queues:
        world.worker(*queues)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {"status": "degraded", "reason": "no-worker"}


def test_without_redis_it_is_degraded(
    settings: Settings, make_client: Callable[[Settings], FlaskClient]
) -> None:
    away = replace(settings.redis, url="redis://127.0.0.1:1/0")
    response = make_client(replace(settings, redis=away)).get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {"status": "degraded", "reason": "redis-unavailable"}


def test_without_a_database_it_is_degraded(
    settings: Settings, make_client: Callable[[Settings], FlaskClient], tmp_path: Path
) -> None:
    (tmp_path / "folder.db").mkdir()
    url = f"sqlite:///{tmp_path / 'folder.db'}"
    response = make_client(replace(settings, database_url=url)).get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {"status": "degraded", "reason": "database-unavailable"}


def test_it_is_degraded_while_the_database_cannot_be_written_to(
    client: FlaskClient, world: World, settings: Settings
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    assert client.get("/readyz").status_code == 200
    with read_only(file):
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.get_json() == {"status": "degraded", "reason": "database-unavailable"}
    assert client.get("/readyz").status_code == 200


def test_it_is_ready_while_somebody_writes(
    client: FlaskClient, world: World, settings: Settings
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    with closing(Database(settings.database_url)) as database, database.write():
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("settings_url", ["postgresql"], indirect=True)
def test_it_is_degraded_while_somebody_has_locked_the_jobs(
    client: FlaskClient, world: World, settings: Settings
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    with closing(Database(settings.database_url)) as database, database.write() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.get_json() == {"status": "degraded", "reason": "database-unavailable"}
    assert client.get("/readyz").status_code == 200
