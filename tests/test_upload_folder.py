"""What is being written in the folder of uploads, and what nobody writes any more."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_app import upload_folder
from trainer_app.upload_folder import sweep, temporary

ROOT = Path(__file__).parents[1]
HALF = b"half a te"
holders: list[int] = []  # descriptors
# Begins an upload, tells so, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from trainer_app.upload_folder import temporary
with temporary(Path(sys.argv[1])) as (path, file):
    file.write(b"half a te")
    file.flush()
    print(path.name, flush=True)
    time.sleep(60)
"""


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_upload_is_swept_as_soon_as_its_process_is_killed_and_no_earlier(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        name = writer.stdout.readline().strip()
        os.utime(tmp_path / name, (0, 0))  # however long nothing has come
        alive = sweep(tmp_path)
        writer.kill()
    assert alive == {}
    assert left(tmp_path) == [name]
    assert sweep(tmp_path) == {name: len(HALF)}
    assert left(tmp_path) == []


def test_a_text_that_is_renamed_while_it_is_swept_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary(tmp_path) as (path, file):
        file.write(HALF)
        real = fcntl.flock

        def late(descriptor: int, flags: int) -> None:
            path.rename(tmp_path / "a.txt")
            file.close()
            real(descriptor, flags)

        monkeypatch.setattr(fcntl, "flock", late)
        assert sweep(tmp_path) == {}
    assert left(tmp_path) == ["a.txt"]


def swept_in_between(folder: Path, real: Callable[[int, int], None]) -> None:
    """What another process does that finds the file before it is locked."""
    (path,) = folder.iterdir()
    found = os.open(path, os.O_RDWR)
    real(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.unlink()
    os.close(found)


def locked_in_between(folder: Path, real: Callable[[int, int], None]) -> None:
    """The same, which has come as far as the lock."""
    (path,) = folder.iterdir()
    found = os.open(path, os.O_RDWR)
    real(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holders.append(found)


@pytest.mark.parametrize("meddle", [swept_in_between, locked_in_between])
def test_an_upload_that_a_sweep_finds_before_it_is_locked_takes_another_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meddle: Callable[[Path, Callable[[int, int], None]], None],
) -> None:
    real = fcntl.flock
    calls = list[int]()

    def late(descriptor: int, flags: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            meddle(tmp_path, real)
        real(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    with temporary(tmp_path) as (path, file):
        file.write(HALF)
        file.flush()
        assert sweep(tmp_path) == {}
        assert path.read_bytes() == HALF
        assert left(tmp_path) == [path.name]
    assert left(tmp_path) == []
    while holders:
        os.close(holders.pop())


@pytest.mark.parametrize("name", [".upload.1.tmp", ".locked-upload.1.tmp"])
def test_where_no_lock_tells_a_day_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(_descriptor: int, _flags: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", fails)
    path = tmp_path / name
    path.write_bytes(HALF)
    assert sweep(tmp_path) == {}
    os.utime(path, (0, 0))
    assert sweep(tmp_path) == {name: len(HALF)}


def test_what_cannot_be_swept_stays_and_hinders_nobody(tmp_path: Path) -> None:
    folder, link = tmp_path / ".locked-upload.1.tmp", tmp_path / ".locked-upload.2.tmp"
    folder.mkdir()
    link.symlink_to("elsewhere")
    (tmp_path / ".locked-upload.3.tmp").write_bytes(HALF)
    assert sweep(tmp_path) == {".locked-upload.3.tmp": len(HALF)}
    assert left(tmp_path) == [folder.name, link.name]


def test_only_marks_of_digests_count(tmp_path: Path) -> None:
    digest = "a" * 64
    upload_folder.mark_path(tmp_path, digest).touch()
    (tmp_path / ".b.unrecorded").touch()
    assert upload_folder.marked(tmp_path) == [digest]
    assert upload_folder.marked(tmp_path / "missing") == []
