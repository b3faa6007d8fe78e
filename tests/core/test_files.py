"""Files that survive a crash."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.disk_faults import failing_disk
from trainer_app.core.files import (
    blocks,
    disk_full_named,
    end_replacements,
    fsync_tree,
    make_own_folder,
    put_back,
    remove_directory,
    rename_directory,
    replace_directory,
    sha256_file,
    write_atomically,
)
from trainer_app.errors import DiskFull, TrainerError


def test_a_file_is_written_in_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state.json"]  # noqa: PTH208 - hidden names count


def test_a_folder_of_ours_is_made_with_those_above_it_and_in_place_of_a_file(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "runs" / "run-a"
    assert not make_own_folder(folder)
    assert not make_own_folder(folder)
    folder.rmdir()
    folder.write_text("no folder")

    assert make_own_folder(folder)
    assert folder.is_dir()


def test_a_file_above_a_folder_of_ours_stays_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(TrainerError, match="run-a cannot be made: a file stands above it"):
        make_own_folder(tmp_path / "runs" / "run-a")
    assert (tmp_path / "runs").is_file()


@pytest.mark.parametrize("becomes", ["nothing", "a folder"])
def test_a_folder_that_another_makes_at_the_same_time_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    folder = tmp_path / "tokens"
    folder.write_text("no folder")
    unlink = Path.unlink

    def beside(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path)
        if becomes == "a folder":
            path.mkdir()
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", beside)

    assert make_own_folder(folder)
    assert folder.is_dir()


def test_a_link_that_leads_nowhere_stays_in_the_place_of_a_folder_and_is_named(
    tmp_path: Path,
) -> None:
    link = tmp_path / "run-a"
    link.symlink_to(tmp_path / "away")

    with pytest.raises(TrainerError) as error:
        make_own_folder(link)

    where = f"{link} leads to {tmp_path}/away"
    assert str(error.value) == f"{where}, which is no folder or is not there"
    assert link.is_symlink()


def test_a_file_that_grows_as_fast_as_it_is_read_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"abcdefgh")
    read = []
    with path.open("rb") as file, path.open("ab", buffering=0) as more:
        for block in blocks(file, 3):
            read.append(block)
            more.write(b"more and more")
            assert len(read) < 10
    assert read == [b"abc", b"def", b"gh"]


def test_a_file_that_is_cut_while_it_is_read_ends_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(bytes(100))
    with path.open("rb", buffering=0) as file:
        reading = blocks(file, 10)
        next(reading)
        os.truncate(path, 15)
        assert list(reading) == [bytes(5)]


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


def test_a_link_is_replaced_by_a_folder_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    for name in ("staging", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "final").symlink_to(tmp_path / "elsewhere")
    replace_directory(tmp_path / "staging", tmp_path / "final")
    assert not (tmp_path / "final").is_symlink()
    assert (tmp_path / "final" / "file").read_text() == "staging"
    assert (tmp_path / "elsewhere" / "file").read_text() == "elsewhere"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "final"]  # noqa: PTH208


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


@pytest.mark.parametrize("before", [False, True], ids=["the first", "in place of one"])
def test_a_folder_is_copied_to_another_file_system(
    tmp_path: Path, other_file_system: Path, *, before: bool
) -> None:
    source, target = tmp_path / "staging", other_file_system / "model"
    (source / "eval").mkdir(parents=True)
    (source / "eval" / "metrics.json").write_bytes(b"{}")
    if before:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    replace_directory(source, target)
    assert [path.name for path in target.rglob("*")] == ["eval", "metrics.json"]
    assert list(other_file_system.iterdir()) == [target]


def test_a_folder_is_copied_to_where_the_system_renames_nothing_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "staging", tmp_path / "mounted" / "model"
    for folder in (source, target):
        folder.mkdir(parents=True)
        (folder / folder.name).touch()
    rename = Path.rename

    def within(one: Path, other: Path) -> Path:
        if one.parent != other.parent:  # as between two mounts of one file system
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(one, other)

    monkeypatch.setattr(Path, "rename", within)
    replace_directory(source, target)
    assert [path.name for path in target.iterdir()] == ["staging"]
    assert list(target.parent.iterdir()) == [target]


def test_a_fault_during_the_copy_to_another_file_system_leaves_what_was_there(
    tmp_path: Path, other_file_system: Path
) -> None:
    source, target = tmp_path / "staging", other_file_system / "model"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    for n in range(1, 40):
        with failing_disk(n, errno.EIO) as disk:
            try:
                replace_directory(source, target)
            except OSError:
                assert disk.failed
        assert (target / "file").read_text() in {"old", "new"}
        assert list(other_file_system.iterdir()) == [target]
        if not disk.failed:
            break
    assert 5 < n < 39
    assert (target / "file").read_text() == "new"


def test_what_is_taken_away_while_it_is_copied_does_not_appear(
    tmp_path: Path, other_file_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "staging", other_file_system / "model"
    source.mkdir()
    (source / "file").write_text("of an attempt that was replaced")
    copyfile = shutil.copyfile

    def copied(one: Path, other: Path) -> None:
        copyfile(one, other)
        shutil.rmtree(source)

    monkeypatch.setattr(shutil, "copyfile", copied)
    with pytest.raises(FileNotFoundError):
        replace_directory(source, target)
    assert list(other_file_system.iterdir()) == []


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def test_what_is_published_is_not_moved_for_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a process that wakes: the next attempt has taken its staging away meanwhile."""
    target = folder_with(tmp_path / "model", "published")
    source = folder_with(tmp_path / "staging", "of an attempt that slept")
    moved: list[str] = []
    rename, stat = Path.rename, Path.stat

    def renamed(one: Path, other: Path) -> Path:
        moved.append(one.name)
        return rename(one, other)

    def slept(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = stat(path, follow_symlinks=follow_symlinks)
        if path == target.parent:  # after the first look at the staging
            shutil.rmtree(source, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "stat", slept)
    for _ in range(2):  # gone before, the second time
        with pytest.raises(FileNotFoundError):
            replace_directory(source, target)
    assert moved == []
    assert (target / "file").read_text() == "published"
    assert list(tmp_path.iterdir()) == [target]


class Killed(BaseException):
    """The process is no more."""


@pytest.mark.parametrize("again", [False, True], ids=["nothing has come", "another has come"])
def test_what_a_process_had_moved_away_when_it_was_killed_returns_unless_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    target = folder_with(tmp_path / "model", "published")
    source = folder_with(tmp_path / "staging", "new")
    rename = Path.rename

    def killed(one: Path, other: Path) -> Path:
        if one == source:
            raise Killed
        return rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            replace_directory(source, target)
    assert not target.exists()
    (old,) = tmp_path.glob(".*")
    if again:
        folder_with(target, "another")

    end_replacements(target)
    put_back(old)  # another process does the same

    assert (target / "file").read_text() == ("another" if again else "published")
    assert sorted(tmp_path.iterdir()) == [target, source]


def test_a_fault_while_it_is_put_back_is_told_and_costs_nothing(tmp_path: Path) -> None:
    old = folder_with(tmp_path / f".model.{'0' * 16}.old", "published")
    with failing_disk(1, errno.EIO), pytest.raises(OSError, match="Input/output"):
        put_back(old)
    put_back(old)
    assert (tmp_path / "model" / "file").read_text() == "published"


def test_a_hidden_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    others = {
        folder_with(tmp_path / name, "text")
        for name in (".mine.old", f".model-b.{'0' * 16}.old", f".model.b.{'0' * 16}.tmp")
    }
    end_replacements(tmp_path / "model")
    put_back(tmp_path / ".mine.old")
    assert set(tmp_path.iterdir()) == others


def test_a_copy_of_an_attempt_that_sleeps_is_not_there_when_it_wakes(
    tmp_path: Path, other_file_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_with(tmp_path / "staging", "of the attempt that sleeps")
    target = other_file_system / "model"
    stat = Path.stat
    asked = 0

    def slept(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal asked
        found = stat(path, follow_symlinks=follow_symlinks)
        asked += path == source
        if asked == 2 and path == source:
            # The copy is whole. Then this process sleeps, and the next attempt begins.
            shutil.rmtree(source)
            end_replacements(target)
            folder_with(target, "of the next attempt")
        return found

    monkeypatch.setattr(Path, "stat", slept)
    with pytest.raises(FileNotFoundError):
        replace_directory(source, target)
    assert (target / "file").read_text() == "of the next attempt"
    assert list(other_file_system.iterdir()) == [target]
