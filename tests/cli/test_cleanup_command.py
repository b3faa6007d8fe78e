"""``trainer cleanup``, as a user calls it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import text

from tests.databank_server import running_data_bank
from trainer_app.cli.main import main
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.folders import check_folders, remember_roots
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, tokenizers
from trainer_app.store.database import Database


class Clean(Protocol):
    def __call__(self, *arguments: str) -> tuple[int, str, str]: ...


@pytest.fixture
def clean(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Clean:
    """Runs a command of the group; returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trainer", "cleanup", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(str(ended.value.code or 0)), out, err

    return run


def corpus(settings: Settings, name: str, size: int, age: float) -> Path:
    path = settings.paths.corpus_cache / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_database_of_another_version_is_left_alone(
    settings: Settings, sqlite_database: Database, clean: Clean
) -> None:
    old = corpus(settings, "old", 1_500, 900)
    with sqlite_database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    code, _, err = clean("corpus-cache")

    assert code != 0
    assert "the database is not of this version" in err
    assert old.exists()


def test_while_a_disk_is_away_nothing_goes(
    settings: Settings, clean: Clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "[]")  # set back afterwards
    check_folders(settings)
    remember_roots(settings)
    old = corpus(settings, "old", 1_500, 900)
    settings.paths.artifacts.rename(settings.paths.artifacts.with_name("away"))

    code, _, err = clean("corpus-cache")

    assert code != 0
    assert f"nothing is cleaned up while a disk is away: {settings.paths.artifacts} has no" in err
    assert old.exists()


def test_the_cache_is_cut_down_to_its_size(
    settings: Settings, clean: Clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__CORPUS_CACHE_CLEANUP__MAX_BYTES", "2000")
    monkeypatch.setenv("APP__CORPUS_CACHE_CLEANUP__MIN_FREE_BYTES", "0")
    old, new = corpus(settings, "old", 1_500, 900), corpus(settings, "new", 1_500, 10)

    code, out, _ = clean("corpus-cache", "--dry-run")
    assert code == 0
    assert "would go" in out
    assert out.endswith("1.5 kB would be freed\n")
    assert old.exists()
    code, out, _ = clean("corpus-cache", "--json")

    assert code == 0
    report = json.loads(out)
    assert (report["dry_run"], report["freed_bytes"]) == (False, 1_500)
    assert [item["name"] for item in report["removed"]] == ["old"]
    assert (old.exists(), new.exists()) == (False, True)
    assert clean("corpus-cache") == (0, "0.0 kB was freed\n", "")


def test_unused_tokenizers_go(
    settings: Settings, clean: Clean, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__TOKENIZER_CLEANUP__MIN_UNUSED_DAYS", "0")
    spec = TokenizerSpec(method="char", vocab_size=100, corpus_sha256="0" * 64, tokenizer_id="t")
    job_id = tokenizers.create(sqlite_database, spec, queue="trainer.light").job_id
    claim = lease.claim(sqlite_database, job_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(sqlite_database, claim, "completed", result="{}")
    folder = settings.paths.artifacts / "tokenizers" / "t"
    folder.mkdir(parents=True)

    assert json.loads(clean("tokenizers", "--dry-run", "--json")[1])["removed"][0]["name"] == "t"
    assert folder.exists()
    code, out, _ = clean("tokenizers")

    assert code == 0
    assert "gone" in out
    assert not folder.exists()


def test_checkpoints_and_token_ids_that_nobody_needs_go(
    settings: Settings, clean: Clean, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__TOKEN_CACHE_CLEANUP__MAX_BYTES", "0")
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    run_id = runs.create(sqlite_database, spec, queue="trainer").run_id
    claim = lease.claim(sqlite_database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    folders = {
        "runs": settings.paths.runs / run_id,
        "tokens": settings.paths.tokens / f"{'0' * 32}-{'1' * 32}",
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1_000))
    for command in folders:
        assert json.loads(clean(command, "--json")[1])["removed"] == []
    lease.finish(sqlite_database, claim, "completed", result="{}")

    for command, folder in folders.items():
        assert "would go" in clean(command, "--dry-run")[1]
        assert "gone" in clean(command)[1]
        assert not folder.exists()


def test_models_are_cleaned_only_where_there_is_a_data_bank(
    clean: Clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = clean("models")
    assert (code, out) == (2, "")
    assert "APP__DATA_BANK_API_URL" in err

    with running_data_bank() as server:
        monkeypatch.setenv("APP__DATA_BANK_API_URL", server.url)
        code, out, _ = clean("models", "--json")

    assert (code, json.loads(out)["removed"]) == (0, [])


def test_a_database_without_its_tables_is_not_guessed_at(
    clean: Clean, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE__URL", f"sqlite:///{tmp_path / 'empty.db'}")

    code, _, err = clean("corpus-cache")

    assert code == 4
    assert "trainer db upgrade" in err
