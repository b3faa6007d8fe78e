"""How the folder of a checkpoint is named, for those, too, who do not load it: without torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

FOLDER: Final = "checkpoints"  # of a run's
NAME: Final = re.compile(r"step-(\d+)-attempt-(\d+)")


def name_of(step: int, attempt: int) -> str:
    """The name of the checkpoint that an attempt makes at a step."""
    return f"step-{step:09d}-attempt-{attempt}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint by its name; None: it is no name of one."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else None


def attempts(directory: Path) -> list[int]:
    """The attempts that have left a checkpoint in the folder, whole or not. Raises OSError."""
    found = (NAME.match(path.name.lstrip(".")) for path in directory.glob("*step-*"))
    return [int(match[2]) for match in found if match]
