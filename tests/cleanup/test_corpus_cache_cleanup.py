"""The cache of corpora: bounded, and never without what a job reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainer_app.cleanup.corpus_cache import clean_corpus_cache
from trainer_app.cleanup.report import Report
from trainer_app.core.stopping import never
from trainer_app.databank import corpus_cache
from trainer_app.file_lock import locked
from trainer_app.settings import CorpusCacheCleanup

if TYPE_CHECKING:
    from tests.cleanup.conftest import World


def clean(
    world: World,
    *,
    max_bytes: int = 10**9,
    min_free: int = 0,
    free: int = 10**9,
    policy: str = "lru",
    dry_run: bool = False,
) -> Report:
    rules = CorpusCacheCleanup(
        enabled=True, max_bytes=max_bytes, min_free_bytes=min_free, eviction_policy=policy
    )
    return clean_corpus_cache(
        world.database, world.cache, rules, dry_run=dry_run, free=lambda _: free
    )


def names(report: Report) -> list[str]:
    return [item.name for item in report.removed]


def test_a_cache_within_its_rules_is_left_alone(world: World) -> None:
    path = world.corpus("a", 100)

    report = clean(world)

    assert (report.removed, report.kept) == ((), ())
    assert path.exists()


def test_a_cache_that_is_not_there_is_clean(world: World) -> None:
    assert clean(world, max_bytes=0).removed == ()


@pytest.mark.parametrize(("policy", "first"), [("lru", "unused"), ("oldest", "old")])
def test_the_policy_says_what_goes_first(world: World, policy: str, first: str) -> None:
    world.corpus("unused", 100, used=900, fetched=1_000)
    world.corpus("old", 100, used=10, fetched=2_000)
    world.corpus("new", 100, used=10, fetched=20)

    report = clean(world, max_bytes=200, policy=policy)

    assert names(report) == [first]
    assert report.freed_bytes == 100
    assert "300 bytes, more than 200" in report.removed[0].reason
    assert not (world.cache / f"{first}.txt").exists()


def test_as_much_goes_as_the_file_system_needs(world: World) -> None:
    for number in range(4):
        world.corpus(f"c{number}", 100, used=1_000 - number)

    report = clean(world, min_free=1_150, free=1_000)

    assert names(report) == ["c0", "c1"]
    assert "1100 bytes are free, fewer than 1150" in report.removed[1].reason


def test_what_is_remembered_of_a_corpus_goes_with_it(world: World) -> None:
    world.corpus("a", 100)
    (world.cache / "a.txt.sha256").write_bytes(b"0" * 10)

    assert clean(world, max_bytes=0).freed_bytes == 110
    assert [path.name for path in world.cache.iterdir()] == [".a.lock"]


def test_a_corpus_that_a_job_reads_stays_and_another_goes_in_its_place(world: World) -> None:
    run_id = world.run(corpus_path=None, corpus_file_id="used")
    world.corpus("used", 100, used=1_000)
    world.corpus("free", 100, used=10)

    report = clean(world, max_bytes=150)
    assert names(report) == ["free"]
    assert [(item.name, item.reason) for item in report.kept] == [
        ("used", "a queued or running job reads it")
    ]
    world.end(run_id)

    assert names(clean(world, max_bytes=0)) == ["used"]


def test_a_dry_run_says_the_same_and_deletes_nothing(world: World) -> None:
    world.run(corpus_path=None, corpus_file_id="used")
    world.corpus("used", 100, used=1_000)
    world.corpus("free", 100)
    (world.cache / "left.txt.part").write_bytes(b"12345")

    dry = clean(world, max_bytes=50, dry_run=True)

    assert len(list(world.cache.iterdir())) == 3
    assert names(dry) == ["left", "free"]
    real = clean(world, max_bytes=50)
    assert (real.removed, real.kept) == (dry.removed, dry.kept)


def test_a_part_that_nobody_waits_for_goes_even_where_there_is_room(world: World) -> None:
    world.run(corpus_path=None, corpus_file_id="waited")
    world.corpus("whole", 100)
    for name in ("waited", "abandoned"):
        (world.cache / f"{name}.txt.part").write_bytes(b"12345")

    report = clean(world)

    assert names(report) == ["abandoned"]
    assert [item.name for item in report.kept] == ["waited"]


def test_a_corpus_that_is_being_fetched_stays(world: World) -> None:
    world.corpus("a", 100)

    with locked(corpus_cache.lock_path(world.cache, "a"), should_stop=never):
        report = clean(world, max_bytes=0)

    assert [item.reason for item in report.kept] == ["it is being fetched"]
    assert (world.cache / "a.txt").exists()


def test_a_symbolic_link_is_neither_followed_nor_removed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_bytes(b"precious")
    world.cache.mkdir(parents=True)
    (world.cache / "link.txt").symlink_to(outside)
    (world.cache / "gone.txt").symlink_to(tmp_path / "nowhere")

    report = clean(world, max_bytes=0)

    assert report.removed == ()
    assert {item.name for item in report.kept} == {"link", "gone"}
    assert outside.read_bytes() == b"precious"
    assert (world.cache / "link.txt").is_symlink()
