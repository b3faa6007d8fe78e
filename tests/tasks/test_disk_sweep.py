"""A real run on a disk that fails under any library's hands: no fault costs a run."""

from __future__ import annotations

from tests.disk_shim import check_sweep
from trainer_app.settings import Settings


def test_a_run_goes_on_after_a_disk_failed_at_some_operation(worker: Settings) -> None:
    # At every one: tests/faults/test_disk_sweep.py.
    check_sweep(worker, first=13, stride=59, faults=["fills", "fails once"])
