"""A job's log: one JSON object a line, whole after a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_app.log import JobLog, last_events


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_time_level_event_and_the_context_of_the_job(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "logs" / "run-1.jsonl", run_id="run-1", attempt=2)

    log.info("step", step=3)
    log.warning("slow")
    log.error("failed", error_code="DISK_FULL")
    log.close()

    written = lines(tmp_path / "logs" / "run-1.jsonl")
    assert [(line["level"], line["event"]) for line in written] == [
        ("info", "step"),
        ("warning", "slow"),
        ("error", "failed"),
    ]
    assert all(line["run_id"] == "run-1" and line["attempt"] == 2 for line in written)
    assert str(written[0]["ts"]).endswith("+00:00")


def test_a_newline_in_a_value_stays_within_its_line(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log")

    log.info("sample", text='two\nlines\r\n\u2028 and "quotes" \ud800')
    log.close()

    assert len((tmp_path / "log").read_bytes().split(b"\n")) == 2


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log")

    log.info("step", train_loss=float("nan"), grad_norm=float("inf"), learning_rate=0.5)
    log.close()

    (line,) = lines(tmp_path / "log")
    assert (line["train_loss"], line["grad_norm"], line["learning_rate"]) == (None, None, 0.5)


def test_two_attempts_append_to_the_same_log(tmp_path: Path) -> None:
    for attempt in (1, 2):
        log = JobLog(tmp_path / "log", attempt=attempt)
        log.info("started")
        log.close()

    assert [line["attempt"] for line in lines(tmp_path / "log")] == [1, 2]


def test_a_log_that_ends_within_a_line_is_gone_on_with_in_a_line_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    first = JobLog(path, attempt=1)
    first.info("started")
    first.close()
    with path.open("ab") as file:
        file.write(b'{"ts": "2026-01-01T00:00')  # what a full disk took of a line

    for attempt in (2, 3):
        log = JobLog(path, attempt=attempt)
        log.info("started")
        log.info("step")
        log.close()

    whole, torn, *rest = path.read_text().splitlines()
    assert torn == '{"ts": "2026-01-01T00:00'
    assert [json.loads(line)["attempt"] for line in [whole, *rest]] == [1, 2, 2, 3, 3]


PROGRAM = """
import logging, structlog
from trainer_app.log import configure
from trainer_app.settings import load_settings
configure(load_settings())
structlog.get_logger().info('ours', n=1)
structlog.get_logger().debug('hidden')
logging.getLogger('theirs').warning('from %s', 'a library')
"""
FAILING = r"""
def work(secret):
    raise ValueError('\x1b[31m' + secret[:2])

try:
    work('s3cr3t-key')
except ValueError:
    structlog.get_logger().exception('it failed')
    logging.getLogger('theirs').exception('it failed')
"""
HOSTILE = r"structlog.get_logger().info('\x1b[2J', path='/runs/\x1b[31m\0\n\u202e/é')"


def logged_as(form: str, tmp_path: Path, program: str = PROGRAM) -> list[str]:
    environment = {"APP__DATA_ROOT": str(tmp_path), "LOGGING__FORMAT": form}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr.splitlines()


def test_processes_log_json_lines_to_stderr(tmp_path: Path) -> None:
    ours, theirs = (json.loads(line) for line in logged_as("json", tmp_path))

    assert (ours["event"], ours["n"], ours["level"]) == ("ours", 1, "info")
    assert (theirs["event"], theirs["level"]) == ("from a library", "warning")


def test_processes_log_text_for_people(tmp_path: Path) -> None:
    ours, theirs = logged_as("text", tmp_path)

    assert ours.split() == ["[info", "]", "ours", "n=1"]
    assert theirs.split() == ["[warning", "]", "from", "a", "library"]


def test_text_for_people_holds_nothing_that_steers_their_terminal(tmp_path: Path) -> None:
    *_, hostile = logged_as("text", tmp_path, PROGRAM + HOSTILE)

    assert hostile.split() == ["[info", "]", r"\x1b[2J", r"path=/runs/\x1b[31m\x00\n\u202e/é"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_in_the_log_steers_no_terminal_and_tells_no_variable(
    tmp_path: Path, form: str
) -> None:
    told = "\n".join(logged_as(form, tmp_path, PROGRAM + FAILING))

    assert told.count("Traceback (most recent call last)") == 2
    assert "ValueError: " in told
    assert "\x1b" not in told
    assert "s3cr3t" not in told.replace("work('s3cr3t-key')", "")  # its line of source


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("takes_none", ["a full disk", "a pipe that nobody reads"])
def test_a_stream_that_takes_no_line_costs_the_line_alone(
    tmp_path: Path, form: str, takes_none: str
) -> None:
    if takes_none == "a full disk":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stream = os.pipe()
        os.close(reader)
    environment = {"APP__DATA_ROOT": str(tmp_path), "LOGGING__FORMAT": form}

    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}\nprint('goes on')"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=stream,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(stream)

    assert done.stdout == "goes on\n"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_log_in_whose_place_something_else_lies_is_neither_written_nor_read(
    tmp_path: Path, kind: str
) -> None:
    path, other = tmp_path / "run-1.jsonl", tmp_path / "other"
    other.write_text('{"event": "secret"}\n')
    if kind == "link":
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    log = JobLog(path, run_id="run-1")
    log.info("started")
    log.close()

    assert last_events(path, 3) == []
    assert other.read_text() == '{"event": "secret"}\n'


def test_a_fifo_in_a_log_s_place_is_not_written_to_though_somebody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "run-1.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = JobLog(path, run_id="run-1")
        log.info("started")
        log.close()
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
