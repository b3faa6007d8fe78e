"""A service's folders and database, with what clean-up looks for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select, update

from tests.databank_server import DataBankServer, running_data_bank
from trainer_app import artifacts
from trainer_app import settings as all_settings
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.databank.client import DataBank
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.lease import Artifact, JobKind
from trainer_app.store.tables import JobRow, RunRow
from trainer_app.store.uploads import Archive

DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a test puts in place."""

    settings: Settings
    database: Database

    @property
    def cache(self) -> Path:
        return self.settings.paths.corpus_cache

    def corpus(self, file_id: str, size: int, *, used: float = 0, fetched: float = 0) -> Path:
        """A cached corpus that was used and fetched so many seconds ago."""
        self.cache.mkdir(parents=True, exist_ok=True)
        path = self.cache / f"{file_id}.txt"
        path.write_bytes(bytes(size))
        now = time.time()
        os.utime(path, (now - used, now - fetched))
        return path

    def run(self, **fields: object) -> str:
        spec = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
        changed = TrainSpec.from_json(json.dumps(json.loads(spec.to_json()) | fields))
        return runs.create(self.database, changed, queue="trainer", remote_corpora=True).run_id

    def end(self, job_id: str, status: str = "completed", artifact: Artifact | None = None) -> None:
        claim = lease.claim(self.database, job_id, "worker:1", lease_seconds=60)
        assert claim is not None
        lease.finish(self.database, claim, status, result="{}", artifact=artifact)

    def ask(self, run_id: str) -> str:
        spec = GenerateSpec(prompt_text="a").to_json()
        return requests.create(
            self.database, JobKind.GENERATE, run_id, spec, queue="q", user_id=0
        ).request_id

    def model(self, bank: DataBankServer) -> str:
        """A finished run whose model lies here and in the data bank."""
        run_id = self.run()
        staging = self.settings.paths.runs / run_id / "staging"
        staging.mkdir(parents=True)
        (staging / "config.json").write_bytes(b"{}")
        (staging / "model.safetensors").write_bytes(bytes(1_000))
        folder = artifacts.model_directory(self.settings, run_id)
        sha256 = artifacts.publish(staging, folder, {"run_id": run_id})
        data = b"".join(artifacts.stream_tar(folder, artifacts.pointer(folder).files))
        file_id = bank.put(data)
        archive = Archive(file_id=file_id, sha256=file_id, bytes=len(data))
        self.end(run_id, artifact=Artifact(storage="data-bank", sha256=sha256, archive=archive))
        return run_id

    def tokenizer(self, name: str) -> Path:
        spec = TokenizerSpec(
            method="bpe", vocab_size=300, corpus_path="a", corpus_sha256="0" * 64, tokenizer_id=name
        )
        self.end(tokenizers.create(self.database, spec, queue="trainer.light").job_id)
        folder = artifacts.tokenizer_directory(self.settings, name)
        (folder / "deep").mkdir(parents=True)
        (folder / "tokenizer.json").write_bytes(bytes(100))
        (folder / "deep" / "more").write_bytes(bytes(20))
        return folder

    def job_ids(self, kind: str) -> list[str]:
        with self.database.read() as connection:
            return list(connection.scalars(select(JobRow.id).where(JobRow.kind == kind)))

    def elapse(self, seconds: float) -> None:
        times = (JobRow.created_at, JobRow.completed_at, JobRow.lease_until, JobRow.heartbeat_at)
        with self.database.write() as connection:
            connection.execute(
                update(JobRow).values({column: column - seconds for column in times})
            )
            connection.execute(update(RunRow).values(uploaded_at=RunRow.uploaded_at - seconds))
        then = time.time() - seconds
        for folder in (self.settings.paths.artifacts / "models").glob("*"):
            os.utime(folder, (then, then))


@pytest.fixture
def world(settings: Settings, sqlite_database: Database) -> World:
    return World(settings=settings, database=sqlite_database)


@pytest.fixture
def server() -> Iterator[DataBankServer]:
    with running_data_bank() as running:
        yield running


@pytest.fixture
def bank(server: DataBankServer) -> Iterator[DataBank]:
    found = all_settings.DataBank(url=server.url, api_key="", max_bytes=10**6, retry_seconds=0.0)
    with DataBank(found) as client:
        yield client
