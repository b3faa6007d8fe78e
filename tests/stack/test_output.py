"""What the processes say, on the terminal and in files."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest

from trainer_app.stack import output as outputs
from trainer_app.stack.output import Output


def test_a_line_has_its_process_before_it_and_goes_to_its_file(tmp_path: Path) -> None:
    stream = io.StringIO()
    output = Output(stream, tmp_path, ["api", "worker-0"])
    output.line("api", b"listening \xff\n")
    output.say("stopping")
    first, second = stream.getvalue().splitlines()
    assert first.partition(" ")[2] == "api      | listening �"
    assert second.partition(" ")[2] == "trainer  | stopping"
    assert (tmp_path / "api.log").read_text().endswith(" listening �\n")
    assert (tmp_path / "trainer.log").read_text().endswith(" stopping\n")


def test_logs_that_were_removed_are_begun_anew(tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    output = Output(io.StringIO(), logs, ["api"])
    output.line("api", b"before")
    shutil.rmtree(tmp_path / "run")
    output.line("api", b"after")
    assert (logs / "api.log").read_text().endswith(" after\n")


def test_no_logs_are_kept_where_the_data_root_is_away(tmp_path: Path) -> None:
    stream = io.StringIO()
    output = Output(stream, tmp_path / "data" / "run" / "logs", ["api"])
    output.line("api", b"line")
    assert "line" in stream.getvalue()
    assert not (tmp_path / "data").exists()


def test_a_plain_line_has_nothing_before_it(tmp_path: Path) -> None:
    stream = io.StringIO()
    Output(stream, tmp_path, []).plain("ready  http://127.0.0.1:8000")
    assert stream.getvalue() == "ready  http://127.0.0.1:8000\n"


def test_a_large_log_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_MAX_LOG_BYTES", 100)
    output = Output(io.StringIO(), tmp_path, ["api"])
    for number in range(10):
        output.line("api", f"line {number} {'.' * 40}".encode())
    kept = (tmp_path / "api.log.1").read_text() + (tmp_path / "api.log").read_text()
    assert "line 9" in kept
    assert (tmp_path / "api.log").stat().st_size < 200


@pytest.mark.parametrize("first", ["line", "plain"])
def test_a_terminal_that_is_gone_stops_neither_the_stack_nor_its_logs(
    tmp_path: Path, first: str
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w", closefd=False) as stream:
        output = Output(stream, tmp_path, ["api"])
        if first == "plain":
            output.plain("ready")
        for text in (b"one", b"two"):
            output.line("api", text)
        output.plain("ready")
        assert len((tmp_path / "api.log").read_text().splitlines()) == 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)  # for what is still in the buffer


def test_a_full_disk_does_not_keep_a_line_from_the_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    output = Output(stream, tmp_path / "not-there", ["api"])
    output.line("api", b"still here")
    assert "still here" in stream.getvalue()
