"""A checkpoint is used by the run that wrote it, at the step that it is of, and by no other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.test_checkpoint import fail, rewrite_state, snapshot
from trainer_app.core.checkpoint import Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run-a" / "checkpoints", attempt=1, run_id="run-a")


def newest(checkpoints: Checkpoints, say: Callable[[str], None]) -> Path:
    found = checkpoints.load_newest(say)
    assert found is not None
    return found[1]


def test_a_checkpoint_of_another_run_is_left_out_and_the_one_before_is_used(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    own = checkpoints.save(snapshot(1))
    other = Checkpoints(tmp_path / "run-b", attempt=1, run_id="run-b").save(snapshot(2))
    shutil.copytree(other, own.parent / other.name)
    messages: list[str] = []

    assert newest(checkpoints, messages.append) == own

    [message] = messages
    assert message == (
        f"checkpoint {other.name} is damaged and left out: "
        "it is a checkpoint of run run-b, not of run-a"
    )
    assert list(own.parent.iterdir()) == [own]


def test_a_checkpoint_under_the_name_of_another_step_is_left_out(checkpoints: Checkpoints) -> None:
    own = checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2)).rename(own.with_name("step-000000009-attempt-1"))
    messages: list[str] = []

    assert newest(checkpoints, messages.append) == own

    assert messages == [
        "checkpoint step-000000009-attempt-1 is damaged and left out: its state.json is of step 2"
    ]


def test_a_checkpoint_of_an_older_version_that_names_no_run_is_taken_up(
    checkpoints: Checkpoints,
) -> None:
    def leave_out(state: dict[str, dict[str, object]]) -> None:
        del state["run_id"]

    own = checkpoints.save(snapshot(1))
    assert json.loads((own / "state.json").read_text())["run_id"] == "run-a"
    rewrite_state(own, leave_out)

    assert newest(checkpoints, fail) == own


def test_whoever_trains_without_a_name_may_move_the_folder(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    Checkpoints(before, attempt=1).save(snapshot(1))
    before.rename(after)

    assert newest(Checkpoints(after, attempt=1), fail).parent == after
    assert newest(Checkpoints(after, attempt=2, run_id="run-a"), fail).parent == after


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_a_file_in_the_place_of_all_checkpoints_is_removed_and_the_run_begins_anew(
    checkpoints: Checkpoints, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run-a" / "checkpoints"
    folder.parent.mkdir()
    make(folder)
    messages: list[str] = []

    assert checkpoints.load_newest(messages.append) is None

    assert messages == ["checkpoints is no folder and is removed: there are no checkpoints"]
    assert checkpoints.save(snapshot(1)) == newest(checkpoints, fail)


def test_a_link_in_the_place_of_all_checkpoints_stays(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = tmp_path / "run-a" / "checkpoints"
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "file")
    (tmp_path / "file").touch()

    assert checkpoints.load_newest(fail) is None

    assert folder.is_symlink()


def test_what_was_just_written_stays_though_a_later_attempt_has_left_checkpoints(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = tmp_path / "run-a" / "checkpoints"
    later = Checkpoints(folder, attempt=3, run_id="run-a")
    others = {later.save(snapshot(1)), later.save(snapshot(2))}

    for step in (3, 4):
        written = checkpoints.save(snapshot(step))

        assert set(folder.iterdir()) == {*others, written}
