"""What a process is at."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from trainer_app import pids
from trainer_app.pids import birth


def test_a_process_keeps_its_birth_and_a_later_one_has_another() -> None:
    own = birth(os.getpid())
    time.sleep(0.05)  # the system counts in hundredths of a second
    with subprocess.Popen(["sleep", "300"]) as later:
        assert birth(later.pid) not in {None, own}
        assert birth(os.getpid()) == own
        later.kill()
    assert birth(later.pid) is None


def test_a_birth_is_known_where_the_system_has_no_folder_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pids, "_PROC", tmp_path)
    with subprocess.Popen(["sleep", "300"]) as process:
        assert birth(process.pid) not in {None, birth(os.getpid())}
        process.kill()
    assert birth(process.pid) is None


def test_the_name_of_a_process_does_not_hide_when_it_began(tmp_path: Path) -> None:
    program = tmp_path / "a ) (b) 1 2"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "300"]) as process:
        born = birth(process.pid)
        process.kill()
    own = birth(os.getpid())
    assert born is not None
    assert own is not None
    assert int(born.rpartition(":")[2]) >= int(own.rpartition(":")[2])
