"""Perplexity, for whoever shows a loss: no arrays here."""

from __future__ import annotations

import math
from typing import Final

LARGEST_EXPONENT: Final = 700.0  # exp of more is infinite, and JSON has no infinity


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats, kept finite."""
    return math.exp(min(loss, LARGEST_EXPONENT))
