"""Tokenizers that no run needs any more, and those that one may."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cleanup.conftest import DAY
from trainer_app.cleanup.tokenizers import clean_tokenizers
from trainer_app.errors import TokenizerNotFound
from trainer_app.store import tokenizers, uses

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


def test_a_folder_that_is_gone_is_said_to_be(world: World) -> None:
    shutil.rmtree(world.tokenizer("old"))
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert [item.reason for item in report.kept] == ["its folder is gone"]


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


def test_a_tokenizer_whose_folder_is_gone_is_told(world: World) -> None:
    folder = world.tokenizer("old")
    folder.rename(folder.with_name("elsewhere"))
    world.elapse(31 * DAY)

    report = clean_tokenizers(world.database, world.settings, dry_run=False)

    assert [item.name for item in report.kept] == ["old"]
