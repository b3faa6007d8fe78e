"""Runs ``trainer up`` as a process of its own, for the demo, for tests and for scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from trainer_app.errors import Unavailable
from trainer_app.settings import load_settings
from trainer_app.stack.processes import training_worker
from trainer_app.stack.state import StackState, read_state
from trainer_app.stack.up import READY_LINE

READY_SECONDS: Final = 200.0
STOP_SECONDS: Final = 35.0
_UP: Final = (sys.executable, "-m", "trainer_app.cli.main", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStack:
    """A stack that was ready when it was started; its pids change when a process is restarted."""

    process: subprocess.Popen[bytes]
    data_root: Path
    output: Path  # what it prints
    api_url: str

    @property
    def state(self) -> StackState:
        """What stack.json says now."""
        state = read_state(self.data_root)
        if state is None:
            raise Unavailable(f"no stack runs on {self.data_root}")
        return state

    def stop(self) -> int:
        """Ask it to stop, wait, and return its exit code; kills it after STOP_SECONDS."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its guard ends the rest
            return self.process.wait()

    def kill(self) -> None:
        """SIGKILL to all that it has started, its guard included, as when a machine goes down."""
        supervisor = psutil.Process(self.process.pid)
        supervisor.suspend()  # or it would start them again
        for process in supervisor.children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        supervisor.kill()
        self.process.wait()


@contextmanager
def running_stack(
    data_root: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    options: Sequence[str] = (),
    ready_seconds: float = READY_SECONDS,
) -> Iterator[RunningStack]:
    """A stack on a free port, stopped at the end.

    ``environment`` adds to that of this process; None takes a variable away. ``options`` are
    further ones of ``trainer up``. Raises Unavailable, with the last line that it printed, when
    it does not become ready.
    """
    stack = start_stack(
        data_root, environment=environment, options=options, ready_seconds=ready_seconds
    )
    try:
        yield stack
    finally:
        stack.stop()


def start_stack(
    data_root: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    options: Sequence[str] = (),
    ready_seconds: float = READY_SECONDS,
) -> RunningStack:
    """Like ``running_stack``, for a caller who stops it in other ways."""
    output = data_root / "run" / "logs" / "up.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # of a stack that may still run here, and write there
        output.replace(output.with_suffix(".log.1"))
    with output.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 (our own command)
            (*_UP, "--port", "0", "--data-root", str(data_root), *options),
            env=_merged(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the caller, who stops the stack in order
        )
    try:
        url = _wait_until_ready(process, data_root, output, time.monotonic() + ready_seconds)
    except BaseException:
        RunningStack(process=process, data_root=data_root, output=output, api_url="").stop()
        raise
    return RunningStack(process=process, data_root=data_root, output=output, api_url=url)


def start_worker(
    stack: RunningStack, index: int, *, environment: Mapping[str, str | None] | None = None
) -> subprocess.Popen[bytes]:
    """One more training worker on the CPU, beside those of the stack; the caller ends it.

    ``environment`` is that of the stack; ``index`` is to be one that the stack does not have.
    """
    process = training_worker(load_settings(), index, device=f"cpu{index}", visible="")
    state = stack.state
    places = {
        "APP__DATA_ROOT": str(stack.data_root),
        "DATABASE__URL": state["database_url"],
        "REDIS__URL": state["redis_url"],
    }
    with (stack.data_root / "run" / "logs" / f"{process.name}.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 (our own command)
            process.command,
            env=_merged({**(environment or {}), **places, **process.environment}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _merged(changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _wait_until_ready(
    process: subprocess.Popen[bytes], data_root: Path, output: Path, deadline: float
) -> str:
    while time.monotonic() < deadline and process.poll() is None:
        lines = output.read_text("utf-8", "replace").splitlines()
        state = read_state(data_root)
        if state is not None and any(line.startswith(READY_LINE) for line in lines):
            return state["api_url"]
        time.sleep(0.1)
    lines = output.read_text("utf-8", "replace").splitlines()
    last = lines[-1] if lines else "it printed nothing"
    raise Unavailable(f"the stack did not become ready: {last} (more in {output})")
