"""Starts processes, restarts those that die, and ends them with all that they started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Final

import psutil

from trainer_app.pids import descendants, is_stopped
from trainer_app.stack.guard import Guard, kill_group
from trainer_app.stack.output import Output
from trainer_app.stack.processes import Process, Role

FIRST_DELAY_SECONDS: Final = 0.5  # before the first restart; doubled for each further one
MAX_DELAY_SECONDS: Final = 30.0
STABLE_SECONDS: Final = 60.0  # a process that lived this long starts again without a history
DRAIN_SECONDS: Final = 26.0  # a worker's time to checkpoint and hand its job back
BROKER_SECONDS: Final = 3.0  # both together stay under the 30 s that a stop may take
KILLED_SECONDS: Final = 2.0  # for what was killed to be gone; who waits in the kernel may never be
# For a housekeeper that is stopped by a signal: it does nothing, and may hold SQLite's one lock.
FROZEN_SECONDS: Final = 60.0
_LINE_BYTES: Final = 65_536  # a longer line is cut into several


@dataclass(slots=True)
class _Child:
    process: Process
    before_restart: Callable[[int], object]
    refusals: int = 0  # ends in a row, none of them by a signal
    running: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0  # when to start it again
    frozen_since: float | None = None


class Supervisor:
    """Keeps the processes of one stack alive; to be driven by calling ``tick`` again and again.

    Each process leads a session and process group of its own, so that a Ctrl-C in the terminal
    reaches the supervisor alone, which then stops all in order.
    """

    def __init__(self, output: Output, environment: Mapping[str, str]) -> None:
        self._output = output
        self.environment = dict(environment)  # of all that is started from now on
        self._children: list[_Child] = []
        self._guard = Guard()

    def start(
        self, process: Process, *, before_restart: Callable[[int], object] = lambda _refusals: None
    ) -> None:
        """Start a process now and keep it running from now on.

        ``before_restart`` mends what the process needs; it is told how many times in a row the
        process has ended of its own accord, and with an error, soon after its start.
        """
        child = _Child(process, before_restart)
        self._children.append(child)
        self._launch(child)

    def drop(self, process: Process) -> None:
        """Kill a process and no longer keep it running."""
        child = next(child for child in self._children if child.process is process)
        self._children.remove(child)
        self._end([child], 0.0, lambda: True)

    def tick(self) -> bool:
        """Notice what has died and start what is due; True when something was started."""
        now = time.monotonic()
        changed = False
        for child in self._children:
            if child.running is not None and child.running.poll() is not None:
                self._bury(child, now)
            elif child.running is not None and child.process.role is Role.HOUSEKEEPING:
                self._end_frozen(child, child.running.pid, now)
            if child.running is None and now >= child.due:
                child.before_restart(child.refusals)
                self._launch(child)
                changed = True
        return changed

    def alive(self, process: Process) -> bool:
        """Whether the process runs at this moment."""
        return any(
            child.running is not None and child.running.poll() is None
            for child in self._children
            if child.process is process
        )

    def most_failures(self) -> tuple[str, int]:
        """The name of the process that died most often in a row, and how often."""
        worst = max(self._children, key=lambda child: child.failures)
        return worst.process.name, worst.failures

    def pids(self) -> list[tuple[Process, int]]:
        """The processes that run, with their pids."""
        return [(child.process, child.running.pid) for child in self._children if child.running]

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Stop all: the broker last, for the others need it while they hand back their work.

        ``hurry`` turning true, at a second Ctrl-C, ends the waiting.
        """
        brokers = [child for child in self._children if child.process.role is Role.BROKER]
        others = [child for child in self._children if child.process.role is not Role.BROKER]
        self._end(others, DRAIN_SECONDS, hurry)
        self._end(brokers, BROKER_SECONDS, lambda: False)
        self._children.clear()
        self._guard.close()

    def _launch(self, child: _Child) -> None:
        child.started = time.monotonic()
        try:
            running = subprocess.Popen(  # noqa: S603 (the commands of processes.py)
                child.process.command,
                env={**self.environment, **child.process.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._fail(child, f"cannot be started: {error}", child.started)
            return
        child.running = running
        self._guard.watch(running.pid, last=child.process.role is Role.BROKER)
        reader = Thread(target=self._read, args=(child.process.name, running), daemon=True)
        reader.start()

    def _read(self, name: str, running: subprocess.Popen[bytes]) -> None:
        assert running.stdout is not None
        with running.stdout as stream:
            while line := stream.readline(_LINE_BYTES):
                self._output.line(name, line)

    def _end_frozen(self, child: _Child, pid: int, now: float) -> None:
        if not is_stopped(pid):
            child.frozen_since = None
        elif child.frozen_since is None:
            child.frozen_since = now
        elif now - child.frozen_since > FROZEN_SECONDS:
            self._output.say(f"{child.process.name} has been stopped for too long: it is killed")
            kill_group(pid)

    def _bury(self, child: _Child, now: float) -> None:
        assert child.running is not None
        # What a dead worker leaves behind, its pool's child, must not train on without it.
        kill_group(child.running.pid)
        self._guard.forget(child.running.pid)
        code = child.running.returncode
        child.running = child.frozen_since = None
        if now - child.started >= STABLE_SECONDS:
            child.failures = child.refusals = 0
        child.refusals = child.refusals + 1 if code > 0 else 0
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._fail(child, f"has ended ({how})", now)

    def _fail(self, child: _Child, what: str, now: float) -> None:
        delay = min(FIRST_DELAY_SECONDS * 2**child.failures, MAX_DELAY_SECONDS)
        child.failures += 1
        child.due = now + delay
        self._output.say(f"{child.process.name} {what}; it starts again in {delay:g} s")

    def _end(self, children: Sequence[_Child], grace: float, hurry: Callable[[], bool]) -> None:
        """SIGTERM to the processes, time to comply, then SIGKILL to all that they started."""
        running = [child.running for child in children if child.running is not None]
        # A session of its own does not hide a grandchild.
        started = [found for process in running for found in descendants(process.pid)]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + grace
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or hurry():
                break
            time.sleep(0.05)
        for process in running:
            kill_group(process.pid)
        deadline = time.monotonic() + KILLED_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:  # in the kernel: a disk or a driver that hangs
                self._output.say(f"process {process.pid} was killed, and is left: it does not end")
            self._guard.forget(process.pid)
        for found in started:
            with suppress(psutil.Error):
                found.kill()  # psutil refuses when the pid has become somebody else's
