"""A line of a job's log, made readable."""

from __future__ import annotations

import json
from typing import Final

from trainer_app.cli.tables import printable

_NOT_REPEATED: Final = frozenset({"ts", "level", "event", "run_id", "job_id"})


def readable(line: str) -> str:
    """Time, level, event and the rest as name=value; what is not our JSON stays as it is."""
    try:
        entry = json.loads(line)
        head = f"{entry['ts'][11:19]} {entry['level']:<7} {entry['event']}"
    except (ValueError, KeyError, TypeError):
        return line
    rest = [f"{name}={_short(entry[name])}" for name in entry if name not in _NOT_REPEATED]
    return printable("  ".join([head, " ".join(rest)]).rstrip())


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
