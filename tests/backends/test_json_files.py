"""JSON files of models: read without trust, and without waiting for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends import json_files
from backends.json_files import read_json
from trainer_app.errors import ModelIncompatible


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelIncompatible, match="not a plain file"):
        read_json(tmp_path / "config.json")


def test_a_device_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ModelIncompatible, match="not a plain file"):
        read_json(tmp_path / "config.json")


def test_a_file_larger_than_any_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "LARGEST", 2)
    (tmp_path / "config.json").write_text("{} ")
    with pytest.raises(ModelIncompatible, match="more than 2 bytes"):
        read_json(tmp_path / "config.json")


def test_what_is_no_fault_of_the_file_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(json_files, "open_regular", refused)
    with pytest.raises(PermissionError):
        read_json(tmp_path / "config.json")
