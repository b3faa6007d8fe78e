"""Tables and figures as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table; None is a dash, numbers stand on the right.

    Its lines are as long as they need to be: an id that was folded or cut could not be copied.
    """
    columns = [
        _column(heading, [row[index] for row in rows]) for index, heading in enumerate(headings)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def _column(heading: str, values: Sequence[object]) -> list[str]:
    cells = [heading, *map(figure, values)]
    width = max(map(len, cells))
    numeric = any(isinstance(value, int | float) for value in values)
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in cells]


def figure(value: object) -> str:
    """A value in a table: floats with four significant digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def moment(seconds: float | None) -> str | None:
    """Unix seconds as a local time."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """A large number in a few characters: 950, 8.4k, 1.2M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def printable(text: str) -> str:
    """Text without what would steer a terminal: such characters stand as escapes."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text
    )
