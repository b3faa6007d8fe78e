"""Folders of the settings that cannot serve stop the start of whatever would use them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import IO, Protocol

import pytest

from trainer_app import folders
from trainer_app.core.files import disk_full_named
from trainer_app.errors import SettingsError
from trainer_app.folders import MARK, check_folders, has_mark, is_away, remember_roots
from trainer_app.settings import Settings, load_settings
from trainer_app.stack.up import up

ROOT = Path(__file__).parents[1]
NAMES = (
    "APP__DATA_ROOT",
    "APP__ARTIFACTS_ROOT",
    "APP__RUNS_ROOT",
    "APP__LOGS_ROOT",
    "APP__CORPUS_ROOT",
    "WANDB_DIR",
)
REMEMBERED = "TRAINER_REMEMBERED_FOLDERS"  # in the environment of a worker's children
STARTERS = {
    "stack": ("-m", "trainer_app.cli.main", "up", "--port", "0"),
    "api": ("-c", "import wsgi"),
    "worker": ("-m", "celery", "-q", "-A", "tasks.app", "worker", "--concurrency", "1"),
    "housekeeping": ("-m", "tasks.housekeeping"),
}


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", "/dev/null", f"/tmp/{'x' * 300}"])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_serve_is_refused_by_the_name_of_its_setting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    monkeypatch.setenv("APP__DATA_ROOT", str(settings.paths.data_root))
    monkeypatch.setenv("WANDB__ENABLED", "true")
    monkeypatch.setenv(name, place)
    cannot = "read" if name == "APP__CORPUS_ROOT" else "written to"
    with pytest.raises(SettingsError, match=rf"^{name}: {re.escape(place)} cannot be {cannot}: "):
        check_folders(load_settings())


@pytest.mark.parametrize("starter", STARTERS)
def test_whatever_starts_alone_stops_with_the_name_of_the_setting(
    tmp_path: Path, starter: str
) -> None:
    done = subprocess.run(
        [sys.executable, *STARTERS[starter]],
        cwd=ROOT,
        env=os.environ | {"APP__DATA_ROOT": str(tmp_path), "APP__RUNS_ROOT": "/proc/x"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "APP__RUNS_ROOT: /proc/x cannot be written to: " in done.stderr.splitlines()[-1]


def test_folders_that_are_not_there_yet_are_made(settings: Settings) -> None:
    check_folders(settings)
    paths = settings.paths
    assert all(one.is_dir() for one in (paths.artifacts, paths.runs, paths.logs, paths.corpus))
    assert not any(paths.runs.iterdir())


def test_a_folder_of_corpora_need_not_be_writable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__DATA_ROOT", str(settings.paths.data_root))
    monkeypatch.setenv("APP__CORPUS_ROOT", "/proc/self")  # which holds no file of anybody's
    check_folders(load_settings())


def test_the_folder_of_weights_and_biases_matters_where_it_is_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__DATA_ROOT", str(settings.paths.data_root))
    monkeypatch.setenv("WANDB_DIR", "/proc/x")
    check_folders(load_settings())


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_or_broken_is_no_bad_setting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def fail(**_: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    check_folders(settings)


def test_a_disk_that_can_only_be_read_stops_the_start_of_a_stack_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.TemporaryFile

    def make_unless_read_only(**where: Path) -> IO[bytes]:
        if where["dir"] == settings.paths.runs:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(dir=where["dir"])

    monkeypatch.setattr(tempfile, "TemporaryFile", make_unless_read_only)
    check_folders(settings)
    with pytest.raises(SettingsError, match=r"^APP__RUNS_ROOT: .*: Read-only file system"):
        up(settings)


class Begins(Protocol):
    """Begins anew as a worker's parent does, which knows what the data root knows alone."""

    def __call__(self) -> Settings: ...


@pytest.fixture
def begin(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Begins:
    def begin() -> Settings:
        monkeypatch.setenv(REMEMBERED, "[]")  # set back afterwards
        check_folders(settings)
        assert not is_away(settings.paths.artifacts, os.environ)  # nothing is known of it yet
        remember_roots(settings)
        return settings

    return begin


@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_a_folder_is_known_again_by_more_than_its_name(begin: Begins, name: str) -> None:
    root = begin().paths.data_root / name
    away = root.with_name("away")
    assert not is_away(root, os.environ)
    root.rename(away)
    assert is_away(root, os.environ)
    root.mkdir()  # as what lies beneath a disk that was unmounted
    assert is_away(root, os.environ)
    root.rmdir()
    root.write_text("no folder")
    assert is_away(root, os.environ)
    root.unlink()
    away.rename(root)
    (root / "models").mkdir()
    assert not is_away(root, os.environ)
    (moved := root.parent).rename(moved.with_name("moved"))
    assert is_away(root, os.environ)


def test_the_children_of_a_worker_know_the_folders_of_its_start(begin: Begins) -> None:
    paths = begin().paths
    paths.runs.rename(paths.runs.with_name("away"))
    paths.runs.mkdir()
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from trainer_app.folders import is_away\n"
        "print([is_away(Path(root), os.environ) for root in sys.argv[1:]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(paths.runs), str(paths.artifacts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[True, False]"


@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_a_folder_beneath_a_disk_is_known_as_such_by_whoever_begins_without_the_disk(
    begin: Begins, name: str
) -> None:
    root = begin().paths.data_root / name
    root.rename(away := root.with_name("away"))
    begin()  # and makes the folder that is missing
    assert is_away(root, os.environ)
    (root / "models").mkdir()
    (root / "models" / ".run-1.lock").touch()  # as whoever looks for a model leaves
    begin()
    assert is_away(root, os.environ)
    shutil.rmtree(root)
    away.rename(root)
    assert not is_away(root, os.environ)
    begin()
    assert not is_away(root, os.environ)


def test_an_empty_folder_serves_where_somebody_puts_a_file_of_that_name_into_it(
    begin: Begins,
) -> None:
    root = begin().paths.artifacts
    root.rename(root.with_name("away"))
    begin()
    assert is_away(root, os.environ)
    (root / MARK).touch()
    assert not is_away(root, os.environ)
    begin()
    assert not is_away(root, os.environ)


def test_a_folder_without_its_mark_does_not_serve_whatever_it_holds(begin: Begins) -> None:
    """As what somebody has put beneath a disk by mistake."""
    root = begin().paths.artifacts
    (root / MARK).unlink()
    assert is_away(root, os.environ)
    (root / "models" / "run-1").mkdir(parents=True)
    begin()
    assert is_away(root, os.environ)


def test_another_disk_that_was_marked_elsewhere_serves(begin: Begins) -> None:
    root = begin().paths.runs
    root.rename(root.with_name("away"))
    root.mkdir()
    (root / MARK).write_text("of another data root")
    begin()
    assert (root / MARK).read_text() == "of another data root"
    assert not is_away(root, os.environ)
    root.rename(root.with_name("another"))
    begin()
    assert is_away(root, os.environ)


def test_workers_that_begin_at_once_leave_one_mark_and_no_other_file(begin: Begins) -> None:
    settings = begin()
    for root in (settings.paths.artifacts, settings.paths.runs):
        (root / MARK).unlink()
    (memory := settings.paths.data_root / "run" / "folders.json").unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: remember_roots(settings), range(8)))
    for root in (settings.paths.artifacts, settings.paths.runs):
        assert [path.name for path in root.iterdir()] == [MARK]
        assert not is_away(root, os.environ)
    assert {path.name for path in memory.parent.iterdir()} == {memory.name, "folders.lock"}


def test_each_folder_that_ever_served_is_known_again(
    begin: Begins, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin()
    monkeypatch.setenv("APP__DATA_ROOT", str(first.paths.data_root))
    monkeypatch.setenv("APP__ARTIFACTS_ROOT", str(first.paths.data_root / "others"))
    check_folders(load_settings())
    remember_roots(load_settings())
    root = first.paths.artifacts
    root.rename(root.with_name("away"))
    begin()
    assert is_away(root, os.environ)


@pytest.mark.parametrize(
    "left", [b"", b'["/da', b"{}", b"[[1], 2, null]", b"\xff", b"[" * 100_000, None]
)
def test_without_what_was_remembered_a_worker_begins_as_the_first_did(
    begin: Begins, left: bytes | None
) -> None:
    settings = begin()
    file = settings.paths.data_root / "run" / "folders.json"
    file.unlink()
    if left is None:
        os.mkfifo(file)  # which to open would be to wait
    else:
        file.write_bytes(left)
    root = settings.paths.artifacts
    root.rename(root.with_name("away"))
    begin()
    assert not is_away(root, os.environ)
    root.rename(root.with_name("another"))
    begin()
    assert is_away(root, os.environ)


def test_where_nothing_can_be_remembered_a_worker_begins_and_knows_its_folders(
    begin: Begins, settings: Settings
) -> None:
    settings.paths.data_root.mkdir(parents=True)
    (settings.paths.data_root / "run").write_text("no folder")
    root = begin().paths.artifacts
    assert not is_away(root, os.environ)
    root.rename(root.with_name("away"))
    assert is_away(root, os.environ)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_folder_that_takes_no_mark_stops_no_start_and_is_not_waited_for(
    begin: Begins, settings: Settings, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def fail(path: Path, _data: bytes) -> None:
        if path.name == MARK:
            with disk_full_named(path):
                raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(folders, "write_atomically", fail)
    root = begin().paths.artifacts
    root.rename(root.with_name("away"))
    begin()
    assert not has_mark(root)
    assert not is_away(root, os.environ)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda mark: mark.symlink_to(mark)])
def test_whatever_bears_the_name_of_a_mark_is_one(
    begin: Begins, settings: Settings, make: Callable[[Path], object]
) -> None:
    settings.paths.artifacts.mkdir(parents=True)
    make(settings.paths.artifacts / MARK)
    assert not is_away(begin().paths.artifacts, os.environ)
    assert has_mark(settings.paths.artifacts)


def test_a_folder_that_cannot_be_looked_at_counts_as_the_same(
    begin: Begins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses it is told why; a broken disk is not waited for without an end."""
    root = begin().paths.artifacts

    def fail(path: Path) -> BufferedReader:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(folders, "open_regular", fail)
    assert not is_away(root, os.environ)


def test_a_folder_that_cannot_be_opened_at_the_start_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REMEMBERED, "[]")
    remember_roots(settings)  # neither is there
    assert not is_away(settings.paths.artifacts, os.environ)
