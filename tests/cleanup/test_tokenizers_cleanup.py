"""Tokenizers that no run needs any more, and those that one may."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine.default import DefaultDialect

from tests.cleanup.conftest import DAY
from trainer_app.cleanup import removal
from trainer_app.cleanup import tokenizers as cleanup
from trainer_app.cleanup.tokenizers import clean_tokenizers
from trainer_app.errors import TokenizerNotFound, Unavailable
from trainer_app.store import tokenizers, uses
from trainer_app.store.database import Database

if TYPE_CHECKING:
    from tests.cleanup.conftest import World


def test_an_unused_tokenizer_goes_with_its_files(world: World) -> None:
    folder = world.tokenizer("old")
    world.elapse(31 * DAY)
    fresh = world.tokenizer("fresh")

    (item,) = clean_tokenizers(world.database, world.settings, dry_run=False).removed

    assert (item.name, item.bytes, item.reason) == ("old", 120, "unused for 31.0 days")
    assert not folder.exists()
    assert fresh.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["fresh"]
    with pytest.raises(TokenizerNotFound):
        tokenizers.get(world.database, "old")


def test_a_dry_run_says_what_would_go(world: World) -> None:
    folder = world.tokenizer("old")
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=True)

    assert [item.name for item in report.removed] == ["old"]
    assert report.freed_bytes == 120
    assert folder.exists()
    assert tokenizers.get(world.database, "old").tokenizer_id == "old"


def test_clean_up_of_tokenizers_keeps_those_that_finished_models_name(world: World) -> None:
    folder = world.tokenizer("named")
    world.end(world.run(tokenizer_id="named"))
    world.elapse(1_000 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert (report.removed, report.kept) == ((), ())
    assert folder.exists()


def test_a_tokenizer_that_came_into_use_meanwhile_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.tokenizer("old")
    world.elapse(31 * DAY)
    found = uses.unused_tokenizers(world.database, min_seconds=DAY)
    world.run(tokenizer_id="old")
    monkeypatch.setattr(uses, "unused_tokenizers", lambda *_, **__: found)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert report.removed == ()
    assert folder.exists()


def test_a_folder_that_is_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    folder = world.tokenizer("old")
    outside = tmp_path / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert report.removed == ()
    assert "links are not followed" in report.kept[0].reason
    assert (outside / "tokenizer.json").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_tokenizer_whose_folder_is_gone_is_forgotten_and_its_name_is_free(
    world: World, *, dry_run: bool
) -> None:
    shutil.rmtree(world.tokenizer("old"))
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=dry_run)

    (item,) = report.removed
    assert (item.name, item.bytes) == ("old", 0)
    assert item.reason == "unused for 31.0 days, and its folder is gone"
    if dry_run:
        assert tokenizers.get(world.database, "old").status == "completed"
    else:
        assert world.tokenizer("old").exists()


def test_a_new_tokenizer_that_takes_the_name_while_clean_up_sleeps_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tokenizer("old")
    world.elapse(31 * DAY)
    forgotten_tokenizer = uses.forgotten_tokenizer
    made: list[Path] = []

    @contextmanager
    def forget_and_sleep(db: Database, tokenizer_id: str, *, min_seconds: float) -> Iterator[bool]:
        with forgotten_tokenizer(db, tokenizer_id, min_seconds=min_seconds) as is_forgotten:
            yield is_forgotten
        made.append(world.tokenizer("old"))  # from here on the name is free

    monkeypatch.setattr(uses, "forgotten_tokenizer", forget_and_sleep)

    assert clean_tokenizers(world.database, world.settings, dry_run=False).removed

    (folder,) = made
    assert (folder / "tokenizer.json").exists()
    assert list(folder.parent.iterdir()) == [folder]
    assert tokenizers.get(world.database, "old").status == "completed"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_returns_where_the_database_did_not_forget_its_tokenizer(
    world: World, monkeypatch: pytest.MonkeyPatch, *, replaced: bool
) -> None:
    folder = world.tokenizer("old")
    world.elapse(31 * DAY)
    set_aside = removal.set_aside

    def set_aside_and_fail(path: Path) -> Path:
        gone = set_aside(path)
        if replaced:  # another clean-up found no folder, and the name was free
            path.mkdir()
            (path / "new").touch()
        monkeypatch.setattr(DefaultDialect, "do_commit", away)
        return gone

    def away(*_: object) -> None:
        raise sqlite3.DatabaseError("disk I/O error")

    monkeypatch.setattr(cleanup, "set_aside", set_aside_and_fail)
    with pytest.raises(Unavailable):
        clean_tokenizers(world.database, world.settings, dry_run=False)

    kept = "new" if replaced else "tokenizer.json"
    assert (folder / kept).exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_tokenizer_whose_folder_cannot_be_moved_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.tokenizer("old")
    world.elapse(31 * DAY)

    def refuse(_path: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(cleanup, "set_aside", refuse)
    with pytest.raises(PermissionError):
        clean_tokenizers(world.database, world.settings, dry_run=False)

    assert (folder / "tokenizer.json").exists()
    assert tokenizers.get(world.database, "old").status == "completed"


def test_a_link_inside_a_folder_is_removed_and_what_it_leads_to_is_not(
    world: World, tmp_path: Path
) -> None:
    folder = world.tokenizer("old")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(bytes(10_000))
    (folder / "away").symlink_to(outside)
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert report.freed_bytes == 120
    assert (outside / "precious").exists()
