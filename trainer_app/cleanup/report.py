"""What a clean-up did, or would do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that could go, and why it does or does not."""

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One pass. In a dry run ``removed`` is what would be."""

    dry_run: bool
    removed: tuple[Item, ...]
    kept: tuple[Item, ...]  # what would have had to go if nothing spoke against it

    @property
    def freed_bytes(self) -> int:
        """How much less there is."""
        return sum(item.bytes for item in self.removed)
