"""The cache of token ids: bounded, and never without what a job reads."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.damaged import damage
from trainer_app.cleanup.report import Report
from trainer_app.cleanup.tokens import clean_tokens
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.settings import TokenCacheCleanup
from trainer_app.store import pauses, requests
from trainer_app.store.lease import JobKind

if TYPE_CHECKING:
    from tests.cleanup.conftest import World

WEEK = 604_800.0


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def entry(world: World, text: str, size: int = 1_000, *, used: float = 0) -> Path:
    """The token ids of a text, which were used so many seconds ago."""
    path = world.settings.paths.tokens / f"{digest(text)[:32]}-{'a' * 32}"
    (path / "split").mkdir(parents=True)
    (path / "ids.bin").write_bytes(bytes(size // 2))
    (path / "split" / "train.bin").write_bytes(bytes(size - size // 2))
    then = time.time() - used
    os.utime(path, (then, then))
    return path


def clean(
    world: World,
    *,
    max_bytes: int = 10**9,
    min_free: int = 0,
    free: int = 10**9,
    dry_run: bool = False,
) -> Report:
    rules = TokenCacheCleanup(enabled=True, max_bytes=max_bytes, min_free_bytes=min_free)
    settings = replace(world.settings, token_cache_cleanup=rules)
    return clean_tokens(world.database, settings, dry_run=dry_run, free=lambda _folder: free)


def test_the_longest_unused_go_until_the_rest_fits(world: World) -> None:
    oldest, old, new = (
        entry(world, name, used=age) for name, age in (("a", 9), ("b", 5), ("c", 1))
    )
    (would_go,) = clean(world, max_bytes=2_000, dry_run=True).removed
    assert oldest.exists()
    (gone,) = clean(world, max_bytes=2_000).removed

    assert gone == would_go
    assert (gone.name, gone.bytes) == (oldest.name, 1_000)
    assert "holds 3000 bytes, more than 2000" in gone.reason
    assert sorted(world.settings.paths.tokens.iterdir()) == sorted([old, new])


def test_room_is_made_on_the_file_system(world: World) -> None:
    for age, name in enumerate("abc"):
        entry(world, name, used=age)
    report = clean(world, min_free=2_500, free=1_000)
    assert len(report.removed) == 2
    assert "1000 bytes are free, fewer than 2500" in report.removed[0].reason


def test_the_ids_of_jobs_that_live_or_may_be_resumed_stay(world: World) -> None:
    states = {
        name: world.run(corpus_sha256=digest(name)) for name in ("paused", "failed", "queued")
    }
    pauses.pause(world.database, states["paused"])
    world.end(states["failed"], "failed")
    done = world.run(corpus_sha256=digest("done"))
    world.end(done)
    for name in (*states, "done", "unknown"):
        entry(world, name)

    report = clean(world, max_bytes=0)

    assert {item.name[:32] for item in report.kept} == {digest(name)[:32] for name in states}
    assert {item.name[:32] for item in report.removed} == {
        digest(name)[:32] for name in ("done", "unknown")
    }

    world.elapse(2 * WEEK)
    assert [item.name[:32] for item in clean(world, max_bytes=0).removed] == [digest("failed")[:32]]


def test_the_ids_that_an_evaluation_reads_stay(world: World) -> None:
    run_id = world.run(corpus_sha256=digest("corpus"))
    world.end(run_id)
    spec = EvaluateSpec(text_sha256=digest("other"), path_override="other.txt")
    request = requests.create(
        world.database, JobKind.EVALUATE, run_id, spec.to_json(), queue="q", user_id=0
    ).request_id
    entry(world, "corpus")
    entry(world, "other")
    assert clean(world, max_bytes=0).removed == ()
    world.end(request)
    assert len(clean(world, max_bytes=0).removed) == 2


def test_a_run_that_comes_during_the_clean_up_keeps_its_ids(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = entry(world, "first", used=2), entry(world, "second", used=1)
    remove = Path.rename

    def rename(path: Path, target: Path) -> Path:
        world.run(corpus_sha256=digest("second"))
        return remove(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    clean(world, max_bytes=0)
    assert not first.exists()
    assert second.exists()


def test_nothing_else_in_the_folder_is_touched(world: World, tmp_path: Path) -> None:
    tokens = world.settings.paths.tokens
    tokens.mkdir(parents=True)
    (tokens / "notes").write_text(json.dumps("mine"))
    (tokens / f"{'b' * 32}-{'c' * 32}").symlink_to(tmp_path)
    assert clean(world, max_bytes=0) == Report(dry_run=False, removed=(), kept=())
    assert len(list(tokens.iterdir())) == 2


def test_without_a_cache_there_is_nothing_to_do(world: World) -> None:
    assert clean(world, max_bytes=0).removed == ()


def test_a_run_whose_row_is_damaged_keeps_nothing_and_nobody_else_from_it(world: World) -> None:
    world.run(corpus_sha256=digest("a"))
    damage(world.database, world.run(corpus_sha256=digest("b")), spec="[]")
    used, damaged = entry(world, "a", used=9), entry(world, "b", used=5)

    report = clean(world, max_bytes=0)

    assert [item.name for item in report.removed] == [damaged.name]
    assert [item.name for item in report.kept] == [used.name]
