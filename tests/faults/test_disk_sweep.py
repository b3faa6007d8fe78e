"""A real run on a disk that fails at each of its operations in turn: no fault costs a run."""

from __future__ import annotations

import pytest

from tests.disk_shim import check_sweep
from tests.disk_sweep import FAULTS
from trainer_app.settings import Settings


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_goes_on_after_a_disk_failed_at_any_operation(settings: Settings, fault: str) -> None:
    check_sweep(settings, first=1, stride=1, faults=[fault])
