"""Which data root a process works on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trainer_app.stack.data_root import is_served_by, servers_on


def test_a_process_that_is_gone_serves_no_data_root(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    assert not is_served_by(gone.pid, tmp_path)


@pytest.mark.parametrize(("named", "serves"), [("data", True), ("other", False), (None, False)])
def test_a_process_serves_the_data_root_that_its_environment_names(
    tmp_path: Path, named: str | None, serves: bool
) -> None:
    for name in ("data", "other"):
        (tmp_path / name).mkdir()
    more = {} if named is None else {"APP__DATA_ROOT": str(tmp_path / named)}
    kept = {name: value for name, value in os.environ.items() if name != "APP__DATA_ROOT"}
    # Popen returns as soon as the program is being loaded, and that may be before the system shows
    # its environment: it says when it runs.
    command = ["sh", "-c", "echo runs; read line"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=kept | more, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        found = is_served_by(process.pid, tmp_path / "data")

    assert found is serves


def test_what_is_in_the_folder_of_a_broker_and_does_not_listen_is_no_server(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"], cwd=tmp_path) as shell:
        found = servers_on(tmp_path)
        shell.kill()

    assert found == []
