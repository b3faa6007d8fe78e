"""A real server on a real port, and the command line as a user calls it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Protocol

import pytest
import redis
import structlog
from sqlalchemy import select
from werkzeug.serving import make_server

from tests.published import publish_tokenizer
from trainer_app import artifacts
from trainer_app.cli.main import main
from trainer_app.client import Client
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.factory import create_app
from trainer_app.queue import WORKER_KEY
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, MetricPoint, Progress
from trainer_app.store.tables import JobRow, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server, and what stands behind it."""

    url: str
    settings: Settings
    database: Database

    def client(self, api_key: str | None = None) -> Client:
        return Client(self.url, api_key=api_key, timeout=20)

    def corpus(self) -> str:
        path = self.settings.paths.corpus / "tale.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Once upon a time there was a king.\n" * 400)
        return path.name

    def tokenizer(self, name: str = "words") -> str:
        spec = TokenizerSpec(
            method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id=name
        )
        job_id = tokenizers.create(self.database, spec, queue="trainer.light").job_id
        publish_tokenizer(self.settings, job_id, name)
        result = json.dumps({"vocab_size": 300, "oov_rate": 0.5, "bytes_per_token": 2.5})
        self.finish(self.claim(job_id), result=result)
        return name

    def run(self) -> str:
        names = [one.tokenizer_id for one in tokenizers.list_(self.database).items]
        spec = TrainSpec(
            corpus_sha256="0" * 64, corpus_path="tale.txt", tokenizer_id=names[0] if names else None
        )
        return runs.create(self.database, spec, queue="trainer").run_id

    def claim(self, job_id: str) -> Claim:
        claim = lease.claim(self.database, job_id, "worker", lease_seconds=60)
        assert claim is not None
        return claim

    def step(self, claim: Claim, step: int, val_loss: float | None = None) -> None:
        update = Progress(
            progress=step,
            step=step,
            total_steps=100,
            train_loss=5.0 - step / 100,
            val_loss=val_loss,
            tokens_per_sec=12_345.0,
            eta_sec=75.0,
        )
        point = MetricPoint(step=step, epoch=0, train_loss=5.0 - step / 100, val_loss=val_loss)
        lease.progress(self.database, claim, update, [point])

    def finish(
        self,
        claim: Claim,
        status: Status = Status.COMPLETED,
        *,
        result: str | None = None,
        error_code: str | None = None,
        message: str = "",
    ) -> None:
        lease.finish(
            self.database, claim, status, result=result, error_code=error_code, message=message
        )

    def answer_soon(
        self,
        status: Status = Status.COMPLETED,
        *,
        result: str | None = None,
        message: str = "",
        times: int = 1,
    ) -> None:
        """Ends the next requests to a finished run, as a worker would."""

        def work() -> None:
            waiting = select(JobRow.id).where(JobRow.status == Status.QUEUED)
            deadline = time.monotonic() + 10
            left = times
            while left and time.monotonic() < deadline:
                with self.database.read() as connection:
                    job_id = connection.scalar(waiting)
                if job_id is not None:
                    code = None if status is Status.COMPLETED else "INTERNAL_ERROR"
                    claim = self.claim(job_id)
                    self.finish(claim, status, result=result, error_code=code, message=message)
                    left -= 1
                time.sleep(0.02)

        Thread(target=work, daemon=True).start()

    def finished_run(self, status: Status = Status.COMPLETED, **options: str) -> str:
        run_id = self.run()
        claim = self.claim(run_id)
        self.step(claim, 100, val_loss=3.0)
        self.finish(claim, status, **options)
        return run_id

    def model(self, run_id: str, **files: bytes) -> Path:
        staging = self.settings.paths.runs / run_id / "staging"
        staging.mkdir(parents=True)
        for name, data in (files or {"weights": b"0123456789"}).items():
            (staging / name).write_bytes(data)
        final = artifacts.model_directory(self.settings, run_id)
        artifacts.publish(staging, final, {"run_id": run_id, "test_loss": 3.0})
        return final

    def log(self, run_id: str, *events: str) -> None:
        path = self.settings.paths.logs / f"{run_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for event in events:
                entry = {"ts": "2030-01-02T03:04:05.678+00:00", "level": "info", "event": event}
                file.write(json.dumps(entry | {"step": 7, "loss": 0.125}) + "\n")

    def worker(self) -> None:
        with redis.Redis.from_url(self.settings.redis.url) as client:
            told = {"queues": ["trainer"], "memory_bytes": {}}
            client.set(f"{WORKER_KEY}one", json.dumps(told))


@pytest.fixture
def make_server_of(sqlite_database: Database) -> Iterator[Callable[[Settings], Server]]:
    """Starts servers with settings of the test's choice."""
    running = []
    # The server is in this process: what it logs would mix with what the command prints.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    def start(settings: Settings) -> Server:
        app = create_app(settings)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((app, server, thread))
        url = f"http://127.0.0.1:{server.server_port}"
        return Server(url=url, settings=settings, database=sqlite_database)

    yield start
    structlog.reset_defaults()
    for app, server, thread in running:
        server.shutdown()
        thread.join(10)
        server.server_close()
        for service in app.extensions["trainer"].values():
            if hasattr(service, "close"):
                service.close()


@pytest.fixture
def server(make_server_of: Callable[[Settings], Server], settings: Settings) -> Server:
    """A server as it comes."""
    return make_server_of(settings)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Trainer(Protocol):
    """The ``trainer`` command; ``url`` is the server from then on."""

    def __call__(self, *arguments: str, url: str | None = None) -> Outcome: ...


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Trainer:
    """Runs ``trainer`` with the given arguments, in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: str, url: str | None = None) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
        if url is not None:
            monkeypatch.setenv("TRAINER_URL", url)
        before = dict(os.environ)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        os.environ.clear()
        os.environ.update(before)
        out, err = capfd.readouterr()
        return Outcome(int(left.value.code or 0), out, err)

    return run
