"""A stack of its own for each test that breaks it: short leases, frequent checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.victim import ENVIRONMENT, Victim
from trainer_app.client import Client
from trainer_app.stack.launch import running_stack


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def either_database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a stack with a database of each kind in turn."""
    if request.param == "sqlite":
        return {}
    return {"DATABASE__URL": request.getfixturevalue("bare_postgres_url")}


@pytest.fixture
def further_settings(
    request: pytest.FixtureRequest, either_database: dict[str, str]
) -> dict[str, str]:
    """Settings of the stack that differ from ENVIRONMENT; a test file may have its own."""
    return either_database | getattr(request, "param", {})


@pytest.fixture
def victim(
    further_settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Victim]:
    environment = ENVIRONMENT | further_settings
    for name in list(os.environ):
        if name.startswith(("REDIS__", "DATABASE__", "APP__", "JOBS__", "CELERY__")):
            monkeypatch.delenv(name)
    text = tmp_path / "text.txt"
    text.write_bytes((Path(os.__file__).parent / "argparse.py").read_bytes())
    with (
        running_stack(tmp_path / "data", environment=environment) as stack,
        Client(stack.api_url) as client,
    ):
        corpus = client.upload_corpus(text)
        yield Victim(
            stack=stack,
            client=client,
            environment=environment,
            corpus_file_id=corpus["file_id"],
        )
