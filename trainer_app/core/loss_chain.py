"""A chain of hashes over a run's losses: what one value at the end says of the whole curve.

``chain_n = sha256(chain_(n-1) || step_n || loss_n)``, over the steps that are reported: the step
as 8 bytes and the loss as an IEEE 754 double, both big-endian. A resume goes on with the value of
its checkpoint, so that interrupted and undisturbed runs come to the same one. Standard library
only: whoever has a curve can check it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

START: Final = "0" * 64


def link(before: str, step: int, loss: float) -> str:
    """The chain's value after one more step, as 64 hex digits."""
    return hashlib.sha256(bytes.fromhex(before) + struct.pack(">qd", step, loss)).hexdigest()
