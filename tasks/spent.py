"""Which failures a process may be the reason of: it ends after them, and a fresh one goes on."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Final

from tasks.memory import device_bytes
from trainer_app.errors import (
    Conflict,
    CudaNotAvailable,
    DataBankUnavailable,
    DiskAway,
    DiskFull,
    FieldError,
    NotFound,
    OutOfMemory,
    RowDamaged,
    Unavailable,
    UserError,
)

# Of no use to repeat: what was asked for is wrong, gone, or not there yet.
USERS: Final = (UserError, FieldError, NotFound, Conflict)
# A fresh process would meet them, too.
_OUTSIDE: Final = (*USERS, DiskFull, DiskAway, DataBankUnavailable, RowDamaged)

_ENOUGH_FILES: Final = 16


def may_be_the_process(error: Exception) -> bool:
    """Whether the same may happen again in this process, and not in a fresh one."""
    # Mostly the user's fault; but a process that leaks memory, or has lost its GPU, says the same.
    if isinstance(error, OutOfMemory):
        return True
    if isinstance(error, CudaNotAvailable):
        return "cuda" in device_bytes(os.environ)  # else no process has one
    if isinstance(error, Unavailable):
        return not _can_open_files()  # else what does not answer is away for all
    return not isinstance(error, _OUTSIDE)


def _can_open_files() -> bool:
    """As many as a database takes, its journal and a connection among them, and more."""
    with ExitStack() as opened:
        try:
            for _ in range(_ENOUGH_FILES):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return False
        return True
