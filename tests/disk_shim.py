"""A failing disk for the processes of tests: tests/failing_disk.c, compiled and loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests import disk_sweep
from trainer_app.settings import Settings

_ROOT: Final = Path(__file__).resolve().parents[1]


def compiled(folder: Path) -> Path:
    """The library to be loaded before the C library; skips the test where it cannot be made."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler here to make the failing disk with")
    library = folder / "failing_disk.so"
    source = _ROOT / "tests" / "failing_disk.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def check_sweep(worker: Settings, *, first: int, stride: int, faults: Sequence[str]) -> None:
    """Let runs meet a failing disk; each must go on, and end as one that nothing happened to."""
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "a.txt").write_bytes(disk_sweep.TEXT)
    told = worker.paths.data_root / "told.jsonl"
    environment = {
        "LD_PRELOAD": str(compiled(worker.paths.data_root)),
        "APP__THREADS": "1",
        "CELERY__RETRY_INTERVALS_SEC": "0",
        "JOBS__CHECKPOINT_SEC": "0",
    }
    subprocess.run(
        [sys.executable, "-m", "tests.disk_sweep", told, str(first), str(stride), *faults],
        cwd=_ROOT,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    runs = [json.loads(line) for line in told.read_text().splitlines()]
    (whole,) = {run["outcome"] for run in runs if not run["failed"]}
    for run in runs:
        fault = disk_sweep.FAULTS[run["fault"]]
        assert run["torn"] == [], run
        assert run["outcome"] == whole, run
        if "failed" in run["stood"]:
            assert fault.stays, run
            assert run["code"] == disk_sweep.CODES[fault.number], run
        if run["needed"] is not None:
            assert any(f"from {run['needed']}" in said for said in run["said"]), run
