"""Following a run on a terminal and elsewhere."""

from __future__ import annotations

import io
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from trainer_app.cli import watch as watches
from trainer_app.cli.exits import Exit
from trainer_app.cli.watch import watch
from trainer_app.client import Client
from trainer_app.replies import Run
from trainer_app.stack.ports import free_port
from trainer_app.store import lease
from trainer_app.transport import NotReachable

if TYPE_CHECKING:
    from tests.cli.conftest import Server


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=80, color_system=None), screen


def work(server: Server, run_id: str) -> None:
    """A worker's part: two steps, an evaluation, the end."""
    time.sleep(0.7)
    claim = server.claim(run_id)
    time.sleep(0.7)
    server.step(claim, 10)
    time.sleep(0.7)
    server.step(claim, 90, val_loss=3.0)
    time.sleep(0.7)
    server.finish(claim)


def test_a_terminal_sees_a_bar_within_80_columns(server: Server) -> None:
    server.run()
    run_id = server.run()
    console, screen = terminal()
    threading.Thread(target=work, args=(server, run_id)).start()
    with server.client() as client:
        code, run = watch(client, run_id, console)
    assert code is Exit.COMPLETED
    assert run is not None
    text = screen.getvalue()
    for part in ("queued, 1 before it", "step 10/100", "val 3.000", "12.3k tok/s", "completed"):
        assert part in text
    assert max(len(line) for part in text.splitlines() for line in part.split("\r")) < 120


def test_other_outputs_get_plain_lines(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "LINE_SECONDS", 60.0)
    run_id = server.run()
    printed = io.StringIO()
    threading.Thread(target=work, args=(server, run_id)).start()
    with server.client() as client:
        watch(client, run_id, Console(file=printed, soft_wrap=True))
    lines = printed.getvalue().splitlines()
    assert lines[0] == "queued"
    assert any(line.startswith("step 10/100  loss 4.900") for line in lines)
    assert any("val 3.000" in line for line in lines)
    assert lines[-1].startswith("completed after")


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_run_that_is_paused_is_shown_as_paused(server: Server, on_terminal: bool) -> None:
    run_id = server.run()
    claim = server.claim(run_id)
    server.step(claim, 10)
    console, screen = terminal()
    if not on_terminal:
        screen = io.StringIO()
        console = Console(file=screen, soft_wrap=True)

    def seen(text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in screen.getvalue():
            assert time.monotonic() < deadline, screen.getvalue()
            time.sleep(0.05)

    with server.client() as client, server.client() as eyes, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, eyes, run_id, console)
        try:
            seen("step 10/100")
            client.pause_run(run_id)
            seen("pausing")
            lease.hand_back(server.database, claim, message="paused at step 10")
            seen("paused at step 10")
        finally:
            client.cancel_run(run_id)
        assert watching.result(30)[0] is Exit.CANCELLED


def test_what_is_not_known_yet_is_not_shown(server: Server) -> None:
    run_id = server.run()
    with server.client() as client:
        run = client.get_run(run_id)
    assert watches.figures_of(run) == ["step 0/?"]
    assert watches.summary(run) == ["queued"]


def test_ctrl_c_stops_the_watching_and_not_the_run(server: Server) -> None:
    run_id = server.run()
    printed = io.StringIO()
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with server.client() as client:
        assert watch(client, run_id, Console(file=printed)) == (Exit.INTERRUPTED, None)
        assert client.get_run(run_id)["status"] == "queued"
    assert f"trainer runs watch {run_id}" in printed.getvalue()
    assert f"trainer runs cancel {run_id}" in printed.getvalue()


def test_a_server_that_restarts_is_waited_for_but_not_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.finished_run()
    monkeypatch.setattr(watches, "POLL_SECONDS", 0.01)
    asked = []

    class Flaky(Client):
        def get_run(self, run_id: str) -> Run:
            asked.append(run_id)
            run = super().get_run(run_id)
            if len(asked) == 1:
                return {**run, "status": "running"}
            if len(asked) == 2:
                raise NotReachable("restarting")
            return run

    with Flaky(server.url) as flaky:
        assert watch(flaky, run_id, Console(file=io.StringIO()))[0] is Exit.COMPLETED
    assert len(asked) == 3
    monkeypatch.setattr(watches, "PATIENCE_SECONDS", 0.0)
    gone = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with Client(gone) as client, pytest.raises(NotReachable):
        watches._patiently(client, run_id)
