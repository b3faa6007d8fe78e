"""Ends the stack's processes when the supervisor has been killed and cannot do so itself.

It is a process of its own that reads, on a pipe, which process groups live. The pipe ends with
the supervisor, however that ends; an orderly stop leaves nothing to do here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

_GRACE_SECONDS = 26.0  # to drain: checkpoint, hand the job back
_LAST_GRACE_SECONDS = 5.0  # for the broker, which the others need until then


class Guard:
    """The supervisor's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer_app.stack.guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int, *, last: bool) -> None:
        """End this process group if the supervisor dies; ``last``: after all others."""
        self._tell(f"{'last' if last else 'first'} {group}")

    def forget(self, group: int) -> None:
        """The group is gone, and its number may come to belong to somebody else."""
        self._tell(f"gone {group}")

    def close(self) -> None:
        """All is stopped."""
        with suppress(BrokenPipeError):
            self._pipe.close()
        self._process.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _tell(self, line: str) -> None:
        # A guard that somebody has killed is no reason to stop the stack.
        with suppress(BrokenPipeError):
            self._pipe.write(f"{line}\n")
            self._pipe.flush()


def main() -> None:
    """Read the pipe to its end, then end what still lives."""
    groups: dict[int, str] = {}
    for line in sys.stdin:
        word, number = line.split()
        groups[int(number)] = word
    for stage, grace in (("first", _GRACE_SECONDS), ("last", _LAST_GRACE_SECONDS)):
        end_groups([group for group, word in groups.items() if word == stage], grace)


def end_groups(leaders: Iterable[int], grace_seconds: float) -> None:
    """SIGTERM to the leaders, time to comply, then SIGKILL to all of their groups."""
    remaining = set(leaders)
    for leader in remaining:
        with suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(map(_lives, remaining)):
        time.sleep(0.05)
    for leader in remaining:
        kill_group(leader)


def kill_group(leader: int) -> None:
    """SIGKILL to all that is left of a process group; nothing when none is."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _lives(leader: int) -> bool:
    try:
        os.kill(leader, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
