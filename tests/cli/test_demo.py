"""The demo, as a user starts it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from trainer_app.cli.demo import _what_next
from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack
from trainer_app.stack.state import read_state
from trainer_app.transport import ApiError, NotReachable

if TYPE_CHECKING:
    from tests.cli.conftest import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]


@contextmanager
def demo(root: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A demo on its way; what it leaves behind is ended."""
    command = [sys.executable, "-m", "trainer_app.cli.main", "demo", "--data-root", str(root)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        with process:
            yield process
    finally:
        process.kill()
        state = read_state(root)
        if state is not None and psutil.pid_exists(state["pid"]):
            os.kill(state["pid"], signal.SIGTERM)


def test_it_trains_shows_what_it_learnt_and_keeps_the_stack_if_asked(tmp_path: Path) -> None:
    with demo(tmp_path, "--minutes", "0.1", "--keep") as running:
        text, _ = running.communicate()
        assert running.returncode == 0, text
        state = read_state(tmp_path)
        assert state is not None
        assert f"{state['api_url']}/docs" in text
        with Client(state["api_url"]) as client:
            assert client.list_runs(tag="demo")["data"][0]["status"] == "completed"
    assert "before: untrained" in text
    assert "after: trained" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    [folder] = [line.strip() for line in text.splitlines() if line.startswith(f"  {tmp_path}")]
    assert json.loads(Path(folder, "manifest.json").read_text())["test_loss"] < 8.3  # chance


def test_a_run_that_does_not_complete_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with demo(tmp_path, "--minutes", "1") as running:
        _cancel_first_run(tmp_path)
        text, _ = running.communicate()
    assert running.returncode == 1
    assert "ended as cancelled" in text
    assert str(tmp_path / "logs") in text
    assert read_state(tmp_path) is None


def test_ctrl_c_stops_the_stack(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        _first_run(tmp_path)
        running.send_signal(signal.SIGINT)
        text, _ = running.communicate()
    assert running.returncode == 130
    assert "interrupted" in text
    assert read_state(tmp_path) is None


@pytest.mark.parametrize("on_path", [True, False])
def test_at_the_end_it_says_how_to_start_the_stack_again(
    server: Server, on_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(folder) if on_path else "/nowhere")
    monkeypatch.chdir(folder.parent)
    trainer = "trainer" if on_path else f"{folder.name}/trainer"
    printed = io.StringIO()
    with server.client() as client:
        run = client.get_run(server.run())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        root = Path("data", "my demo")
        stack = RunningStack(process=process, data_root=root, output=root, api_url=server.url)
        _what_next(Console(file=printed, soft_wrap=True), stack, run, root, keep=False)
    assert f"  {trainer} up --data-root 'data/my demo'\n" in printed.getvalue()
    assert f"  {trainer} generate {run['run_id']} --prompt" in printed.getvalue()


def _cancel_first_run(root: Path) -> None:
    url, run_id = _first_run(root)
    with Client(url) as client:
        client.cancel_run(run_id)


def _first_run(root: Path) -> tuple[str, str]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        state = read_state(root)
        if state is not None:
            with Client(state["api_url"]) as client:
                try:
                    runs = client.list_runs()["data"]
                except (ApiError, NotReachable):
                    runs = []
            if runs:
                return state["api_url"], runs[0]["run_id"]
        time.sleep(0.2)
    raise AssertionError("no run was started within 200 s")
