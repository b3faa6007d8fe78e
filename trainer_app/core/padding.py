"""What a GPU's products are padded to."""

from __future__ import annotations

from typing import Final

EIGHT_BITS: Final = 16  # numbers in eight bits: what the instructions take of them
VOCABULARY: Final = 128  # logits: where the product is fastest


def padded(count: int, multiple: int) -> int:
    """The next number that is a multiple."""
    return count + -count % multiple
