"""Files that survive a crash."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from trainer_app.core.files import (
    disk_full_named,
    fsync_tree,
    remove_directory,
    rename_directory,
    replace_directory,
    sha256_file,
    write_atomically,
)
from trainer_app.errors import DiskFull


def test_a_file_is_written_in_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state.json"]  # noqa: PTH208 - hidden names count


def test_a_secret_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    (path / "inner").write_bytes(b"old")
    with pytest.raises(OSError, match="taken"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["taken", "inner"]


def test_a_full_disk_is_named_with_the_file() -> None:
    path = Path("/dev/full")
    message = "/dev/full could not be written: No space left"
    with pytest.raises(DiskFull, match=message), disk_full_named(path):
        path.write_bytes(b"x")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_other_errors_of_the_disk_keep_their_name(number: int) -> None:
    with pytest.raises(OSError, match="as it was") as caught, disk_full_named(Path("x")):
        raise OSError(number, "as it was")
    assert caught.value.errno == number


def test_a_fault_in_an_open_file_is_told_with_its_name() -> None:
    with (
        pytest.raises(OSError, match=r"model\.safetensors"),
        disk_full_named(Path("model.safetensors")),
    ):
        raise OSError(errno.EIO, "broken")


def test_a_folder_appears_whole_under_its_final_name(tmp_path: Path) -> None:
    source = tmp_path / "staging"
    (source / "eval").mkdir(parents=True)
    (source / "eval" / "metrics.json").write_bytes(b"{}")
    rename_directory(source, tmp_path / "final")
    assert (tmp_path / "final" / "eval" / "metrics.json").read_bytes() == b"{}"
    assert not source.exists()


def test_a_folder_with_content_is_not_overwritten_by_a_rename(tmp_path: Path) -> None:
    for name in ("staging", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        rename_directory(tmp_path / "staging", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        staging = tmp_path / "staging"
        staging.mkdir()
        (staging / text).write_text(text)
        replace_directory(staging, tmp_path / "final")
        assert [entry.name for entry in (tmp_path / "final").iterdir()] == [text]
    assert os.listdir(tmp_path) == ["final"]  # noqa: PTH208 - hidden names count


def test_a_tree_with_a_missing_root_has_nothing_to_wait_for(tmp_path: Path) -> None:
    fsync_tree(tmp_path / "absent")


def test_a_folder_is_removed_with_all_that_it_holds_and_need_not_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "file").write_text("text")

    remove_directory(folder)
    remove_directory(folder)

    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"abc" * 1000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
