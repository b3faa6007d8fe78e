"""How every command ends, for scripts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the ``trainer`` command."""

    COMPLETED = 0
    FAILED = 1
    BAD_INPUT = 2  # usage, a setting, or a request that the server refuses
    CANCELLED = 3
    NOT_REACHABLE = 4  # no server answers, or it cannot reach what it needs
    INTERRUPTED = 130  # Ctrl-C; a run that was watched goes on


EXPLANATION = (
    "Exit codes: 0 completed; 1 failed; 2 bad input; 3 cancelled; 4 not reachable; "
    "130 interrupted (a run that was watched goes on)."
)


def of_status(status: str) -> Exit:
    """The exit code that mirrors a job's final status."""
    return {"completed": Exit.COMPLETED, "cancelled": Exit.CANCELLED}.get(status, Exit.FAILED)
