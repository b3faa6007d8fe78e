"""The application over a real database and a real Redis, and a client that checks every answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import DATABASES
from tests.published import publish_tokenizer
from trainer_app import artifacts
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.factory import create_app, install_services
from trainer_app.queue import WORKER_KEY
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.lease import Artifact, Claim
from trainer_app.store.tables import Status

# For what the database has a part in; the rest is as true on one kind as on the other.
ON_BOTH_DATABASES = pytest.mark.parametrize("settings_url", DATABASES, indirect=True)
TALE = "Once upon a time there was a king.\nHe had three daughters.\n" * 40


class CheckedClient(FlaskClient):
    """A client that refuses answers that break what all answers promise."""

    def open(
        self,
        *args: object,
        buffered: bool = True,  # streams ask for False
        follow_redirects: bool = False,
        **kwargs: object,
    ) -> TestResponse:
        response = super().open(
            *args, buffered=buffered, follow_redirects=follow_redirects, **kwargs
        )
        assert response.headers["X-Request-ID"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        if response.status_code >= 400 and "/readyz" not in response.request.path:
            _check_error(response)
        return response


def _check_error(response: TestResponse) -> None:
    assert response.mimetype == "application/json"
    body = response.get_json()
    if response.request.method == "HEAD":
        return
    assert set(body) - {"details"} == {"code", "message", "request_id"}
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["message"]
    assert "Traceback" not in response.text
    for detail in body.get("details", ()):
        assert set(detail) == {"field", "message"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a test puts in place behind the API."""

    settings: Settings
    database: Database

    def corpus(self, name: str = "tale.txt", text: str = TALE) -> str:
        path = self.settings.paths.corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def tokenizer(
        self,
        name: str = "words",
        method: str = "bpe",
        status: Status = Status.COMPLETED,
        *,
        sealed: bool = False,  # the version before kept no digest
    ) -> str:
        spec = TokenizerSpec(
            method=method, vocab_size=300, corpus_sha256="0" * 64, tokenizer_id=name
        )
        job_id = tokenizers.create(self.database, spec, queue="trainer.light").job_id
        artifact = None
        if status is Status.COMPLETED:
            sha256 = publish_tokenizer(self.settings, job_id, name)
            artifact = Artifact(storage="local", sha256=sha256) if sealed else None
        result = json.dumps({"vocab_size": 300, "oov_rate": 0.5})
        self.end(job_id, status, result, artifact=artifact)
        return name

    def run(self, status: Status = Status.QUEUED, **values: object) -> str:
        names = [one.tokenizer_id for one in tokenizers.list_(self.database).items]
        base = {
            "corpus_sha256": "0" * 64,
            "corpus_path": "tale.txt",
            "tokenizer_id": "words" if "words" in names else None,
        }
        spec = TrainSpec.from_json(json.dumps({**base, **values}))
        run_id = runs.create(self.database, spec, queue="trainer").run_id
        self.end(run_id, status)
        return run_id

    def end(
        self,
        job_id: str,
        status: Status,
        result: str | None = None,
        *,
        artifact: Artifact | None = None,
    ) -> None:
        if status is Status.QUEUED:
            return
        claim = self.claim(job_id)
        if status is not Status.RUNNING:
            code = "TIMED_OUT" if status is Status.FAILED else None
            lease.finish(
                self.database,
                claim,
                status,
                result=result,
                error_code=code,
                message="over",
                artifact=artifact,
            )

    def claim(self, job_id: str) -> Claim:
        claim = lease.claim(self.database, job_id, "worker", lease_seconds=60)
        assert claim is not None
        return claim

    def model(self, run_id: str, **files: bytes) -> Path:
        staging = self.settings.paths.runs / run_id / "staging"
        staging.mkdir(parents=True)
        for name, data in (files or {"weights": b"0123456789"}).items():
            (staging / name).write_bytes(data)
        return self.publish(run_id, staging)

    def publish(self, run_id: str, staging: Path) -> Path:
        final = artifacts.model_directory(self.settings, run_id)
        artifacts.publish(staging, final, {"run_id": run_id})
        return final

    def log(self, run_id: str, text: bytes) -> Path:
        path = self.settings.paths.logs / f"{run_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text)
        return path

    def worker(self, *queues: str, name: str = "one", **memory_bytes: int) -> None:
        told = {"queues": queues or ("trainer",), "memory_bytes": memory_bytes}
        with redis.Redis.from_url(self.settings.redis.url) as client:
            client.set(f"{WORKER_KEY}{name}", json.dumps(told))


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    """The database and folders that the application under test reads."""
    with closing(Database(settings.database_url)) as database:
        yield World(settings=settings, database=database)


@pytest.fixture
def make_client(settings: Settings) -> Iterator[Callable[[Settings], FlaskClient]]:
    """A client of an application with settings of the test's choice."""
    apps: list[Flask] = []

    def make(changed: Settings) -> FlaskClient:
        app = create_app(changed)
        app.test_client_class = CheckedClient
        apps.append(app)
        return app.test_client()

    yield make
    for app in apps:
        _close_services(app)


@pytest.fixture(scope="session")
def kept_apps() -> list[Flask]:
    """One application, once a test has made it: to put it together takes longer than most tests."""
    return []


@pytest.fixture
def client(settings: Settings, kept_apps: list[Flask]) -> Iterator[FlaskClient]:
    """A client of an application as it comes, over a database and a Redis of this test alone."""
    if kept_apps:
        install_services(kept_apps[0], settings)
    else:
        kept_apps.append(create_app(settings))
        kept_apps[0].test_client_class = CheckedClient
    yield kept_apps[0].test_client()
    _close_services(kept_apps[0])


def _close_services(app: Flask) -> None:
    for service in app.extensions["trainer"].values():
        if hasattr(service, "close"):
            service.close()


@pytest.fixture
def body(world: World) -> dict[str, object]:
    """A body of POST /runs/train that is accepted."""
    return {"corpus_path": world.corpus(), "tokenizer_id": world.tokenizer(), "model_size": "tiny"}
