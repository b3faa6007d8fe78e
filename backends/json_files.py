"""JSON that others wrote: read without trust, and shown in messages without repeating it whole."""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING

from trainer_app.errors import ModelIncompatible

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> object:
    """What a file holds; raises ModelIncompatible where there is none that can be read."""
    try:
        content: object = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ModelIncompatible(f"{path.name} cannot be read: {error}") from error
    return content


def shown(value: object) -> str:
    """A value for a message, however long it is."""
    return reprlib.repr(value)
