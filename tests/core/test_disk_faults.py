"""A disk that fails at any one moment costs the checkpoint that is written, and no other."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.core.test_checkpoint import snapshot
from tests.disk_faults import failing_disk
from trainer_app.core.checkpoint import Checkpoints
from trainer_app.core.files import replace_directory
from trainer_app.errors import DiskFull

EXPECTED: dict[int, type[Exception]] = {errno.ENOSPC: DiskFull, errno.EIO: OSError}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", EXPECTED)
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step"])
def test_the_last_good_checkpoint_survives_a_fault_at_any_operation(
    tmp_path: Path, number: int, again: bool
) -> None:
    step = 1 if again else 2
    for n in range(1, 100):
        directory = tmp_path / str(n)
        checkpoints = Checkpoints(directory, attempt=1)
        good = checkpoints.save(snapshot(1, best_step=1))
        before = content(good)

        with failing_disk(n, number) as disk:
            try:
                checkpoints.save(snapshot(step, best_step=1))
            except EXPECTED[number]:
                assert disk.failed
        if not disk.failed:
            break

        assert content(good) == before
        found = Checkpoints(directory, attempt=2).load_newest(pytest.fail)
        assert found is not None
        assert found[0].state.step in {1, step}
        assert not list(directory.glob(".*"))
        checkpoints.save(snapshot(3))  # the disk is well again
    assert 15 < n < 99


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    for n in range(1, 20):
        with failing_disk(n, errno.EIO) as disk:
            try:
                replace_directory(source, target)
            except OSError:
                assert disk.failed
        assert (target / "file").read_text() in {"source", "target"}
        if not source.exists():
            break
    assert list(tmp_path.iterdir()) == [target]
