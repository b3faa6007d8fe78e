"""Folders of the settings that cannot serve stop the start of whatever would use them."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

from trainer_app.errors import SettingsError
from trainer_app.folders import check_folders, has_been_replaced, remember_roots
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


@pytest.fixture
def remembered(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a worker that has begun."""
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "{}")  # set back afterwards
    check_folders(settings)
    assert not has_been_replaced(settings.paths.artifacts, os.environ)  # nothing is known of it yet
    remember_roots(settings)
    return settings


@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_a_folder_is_known_again_by_more_than_its_name(remembered: Settings, name: str) -> None:
    root = remembered.paths.data_root / name
    away = root.with_name("away")
    assert not has_been_replaced(root, os.environ)
    root.rename(away)
    assert has_been_replaced(root, os.environ)
    root.mkdir()  # as what lies beneath a disk that was unmounted
    assert has_been_replaced(root, os.environ)
    root.rmdir()
    root.write_text("no folder")
    assert has_been_replaced(root, os.environ)
    root.unlink()
    away.rename(root)
    (root / "models").mkdir()
    assert not has_been_replaced(root, os.environ)
    (moved := remembered.paths.data_root).rename(moved.with_name("moved"))
    assert has_been_replaced(root, os.environ)


def test_the_children_of_a_worker_know_the_folders_of_its_start(remembered: Settings) -> None:
    root = remembered.paths.runs
    root.rename(root.with_name("away"))
    root.mkdir()
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from trainer_app.folders import has_been_replaced\n"
        "print([has_been_replaced(Path(root), os.environ) for root in sys.argv[1:]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), str(remembered.paths.artifacts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[True, False]"


def test_a_folder_that_cannot_be_looked_at_counts_as_the_same(
    remembered: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses it is told why; a broken disk is not waited for without an end."""

    def fail(path: Path) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "stat", fail)
    assert not has_been_replaced(remembered.paths.artifacts, os.environ)


def test_a_folder_that_cannot_be_opened_at_the_start_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "{}")
    remember_roots(settings)  # neither is there
    assert not has_been_replaced(settings.paths.artifacts, os.environ)
