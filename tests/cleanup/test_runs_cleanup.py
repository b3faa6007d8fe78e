"""The working state of runs: kept while a run may need it, and no longer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainer_app import artifacts
from trainer_app.cleanup.report import Report
from trainer_app.cleanup.runs import clean_runs
from trainer_app.core.stopping import never
from trainer_app.file_lock import locked
from trainer_app.folders import MARK, check_folders, is_away, remember_roots
from trainer_app.restore import lock_of
from trainer_app.store import lease, pauses, runs, uses
from trainer_app.store.lease import Progress

if TYPE_CHECKING:
    from tests.cleanup.conftest import World

WEEK = 604_800.0  # CELERY__FAILURE_TTL_SEC by default


def clean(world: World, *, dry_run: bool = False) -> Report:
    return clean_runs(world.database, world.settings, dry_run=dry_run)


def begun(world: World) -> tuple[str, Path]:
    """A run that has a checkpoint, and its folder."""
    run_id = world.run()
    claim = lease.claim(world.database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    news = Progress(checkpoint="step-5", checkpoint_step=5)
    lease.progress(world.database, claim, news)
    lease.hand_back(world.database, claim, message="handed back")
    return run_id, folder(world, run_id)


def folder(world: World, name: str) -> Path:
    path = world.settings.paths.runs / name
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "model").write_bytes(bytes(1_000))
    return path


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_failed_or_cancelled_run_keeps_its_checkpoint_for_its_time(
    world: World, status: str
) -> None:
    run_id, path = begun(world)
    world.end(run_id, status)
    world.elapse(WEEK - 60)
    assert clean(world).removed == ()
    assert path.exists()

    world.elapse(120)
    (would_go,) = clean(world, dry_run=True).removed
    assert path.exists()
    (gone,) = clean(world).removed

    assert gone == would_go
    assert (gone.name, gone.bytes) == (run_id, 1_000)
    assert f"{status} 7.0 days ago" in gone.reason
    assert list(world.settings.paths.runs.iterdir()) == []
    run = runs.get(world.database, run_id)
    assert (run.checkpoint, run.checkpoint_step, run.status) == (None, None, status)


def test_what_a_queued_a_paused_or_a_running_run_has_stays(world: World) -> None:
    queued, paused, running = begun(world), begun(world), begun(world)
    pauses.pause(world.database, paused[0])
    lease.claim(world.database, running[0], "worker:1", lease_seconds=60)
    world.elapse(10 * WEEK)

    assert clean(world).removed == ()
    assert all(path.exists() for _, path in (queued, paused, running))
    assert runs.get(world.database, queued[0]).checkpoint == "step-5"


def test_a_completed_run_keeps_nothing(world: World) -> None:
    run_id, path = begun(world)
    world.end(run_id)
    assert [item.name for item in clean(world).removed] == [run_id]
    assert not path.exists()


def test_a_run_that_is_resumed_during_the_clean_up_keeps_its_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, path = begun(world)
    world.end(run_id, "failed")
    world.elapse(2 * WEEK)
    found = uses.spent_jobs(world.database, [run_id], failed_seconds=WEEK)
    pauses.resume(world.database, run_id)
    monkeypatch.setattr(uses, "spent_jobs", lambda *_, **__: found)

    assert clean(world).removed == ()
    assert path.exists()
    assert runs.get(world.database, run_id).checkpoint == "step-5"


def test_two_that_clean_at_once_do_not_disturb_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, path = begun(world)
    world.end(run_id)
    found = uses.spent_jobs(world.database, [run_id], failed_seconds=WEEK)

    def late(*_: object, **__: object) -> dict[str, str]:
        path.rename(path.with_name(f".{run_id}.0.tmp"))  # the other was quicker
        return found

    monkeypatch.setattr(uses, "spent_jobs", late)
    assert clean(world).removed == ()


def test_what_killed_attempts_at_a_tokenizer_left_goes_with_its_end(world: World) -> None:
    world.tokenizer("old")
    (job_id,) = world.job_ids("tokenizer")
    paths = [folder(world, f"{job_id}-{attempt}") for attempt in (1, 2)]
    assert len(clean(world).removed) == 2
    assert not any(path.exists() for path in paths)


def test_what_no_row_names_stays(world: World) -> None:
    mine = folder(world, "mine")
    other = folder(world, f"run-{'0' * 26}")
    assert clean(world) == Report(dry_run=False, removed=(), kept=())
    assert mine.exists()
    assert other.exists()


def test_a_folder_that_is_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    run_id, path = begun(world)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    world.end(run_id)
    (kept,) = clean(world).kept
    assert "links are not followed" in kept.reason
    assert (tmp_path / "outside" / "checkpoints" / "model").exists()


def test_parts_of_a_fetched_model_go_when_nobody_waits_for_it(world: World) -> None:
    run_id = world.run()
    world.end(run_id)
    path = folder(world, f"restore-{run_id}")
    request = world.ask(run_id)
    assert clean(world).removed == ()
    world.end(request)

    lock = lock_of(artifacts.model_directory(world.settings, run_id))
    with locked(lock, should_stop=never):
        assert clean(world).removed == ()
    assert [item.name for item in clean(world, dry_run=True).removed] == [path.name]
    assert clean(world).freed_bytes == 1_000
    assert not path.exists()


def test_a_request_that_comes_during_the_clean_up_keeps_its_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = world.run()
    path = folder(world, f"restore-{run_id}")
    answers = [frozenset[str](), frozenset({run_id})]
    monkeypatch.setattr(uses, "models_in_use", lambda _db: answers.pop(0))
    assert clean(world).removed == ()
    assert path.exists()


def test_a_deletion_that_was_cut_off_is_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(world, ".run-a.0123.tmp")
    clean(world)
    assert path.exists()  # somebody may be at it
    later = time.time() + 3_601
    monkeypatch.setattr(time, "time", lambda: later)
    clean(world, dry_run=True)
    assert path.exists()
    clean(world)
    assert not path.exists()


def test_a_model_whose_replacement_was_cut_off_is_put_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = world.settings.paths.artifacts / "models"
    old = models / f".run-a.{'0' * 16}.old"
    old.mkdir(parents=True)
    (old / "manifest.json").touch()
    clean(world)
    assert old.exists()  # somebody may be at it
    later = time.time() + 3_601
    monkeypatch.setattr(time, "time", lambda: later)
    clean(world)
    assert [path.name for path in models.glob("*/*")] == ["manifest.json"]
    assert (models / "run-a").is_dir()


def test_clean_up_leaves_what_marks_the_folders_of_runs_and_artifacts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "[]")  # set back afterwards
    check_folders(world.settings)
    remember_roots(world.settings)
    run_id, path = begun(world)
    world.end(run_id, "failed")
    world.elapse(WEEK + 60)
    later = time.time() + WEEK
    monkeypatch.setattr(time, "time", lambda: later)
    assert [item.name for item in clean(world).removed] == [run_id]
    assert not path.exists()
    for root in (world.settings.paths.artifacts, world.settings.paths.runs):
        assert [found.name for found in root.iterdir()] == [MARK]
        assert not is_away(root, os.environ)


def test_where_nothing_ever_ran_there_is_nothing_to_do(world: World) -> None:
    assert clean(world).removed == ()
    assert not os.path.lexists(world.settings.paths.runs)
