"""What a file system has room for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.few_files import all_taken, disk_of_few_files
from trainer_app.room import free_bytes, takes_files


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    with disk_of_few_files(tmp_path):
        yield tmp_path


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert takes_files(tmp_path)


def test_where_no_more_files_can_be_made_the_free_bytes_are_of_no_use(few_files: Path) -> None:
    assert free_bytes(few_files) > 0
    with all_taken(few_files):
        assert os.statvfs(few_files).f_bavail > 0
        assert free_bytes(few_files) == 0
        assert not takes_files(few_files)
    assert takes_files(few_files)


def test_a_file_system_that_tells_no_number_of_files_has_room_for_them() -> None:
    proc = Path("/proc")
    if not proc.is_dir() or os.statvfs(proc).f_files:
        pytest.skip("there is no such file system here")
    assert takes_files(proc)


def test_a_folder_that_is_not_there_is_not_called_full(tmp_path: Path) -> None:
    assert takes_files(tmp_path / "away")
