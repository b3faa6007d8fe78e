"""A real run on a disk that fails at each of its operations in turn: no fault costs a run."""

from __future__ import annotations

import os

import pytest

from tests.disk_shim import check_sweep
from tests.disk_sweep import FAULTS
from trainer_app.settings import Settings

# Each operation meets one of the four faults; with DISK_SWEEP_STRIDE=1 all of them, in an hour.
_STRIDE = int(os.environ.get("DISK_SWEEP_STRIDE", str(len(FAULTS))))


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("first", "fault"), list(enumerate(FAULTS, start=1)))
def test_a_run_goes_on_after_a_disk_failed_at_any_operation(
    settings: Settings, first: int, fault: str
) -> None:
    check_sweep(settings, first=min(first, _STRIDE), stride=_STRIDE, faults=[fault])
