"""The module that a WSGI server loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


def run(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"APP__DATA_ROOT": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_web_process_never_imports_the_engine(tmp_path: Path) -> None:
    script = f"import sys, wsgi; print([name for name in {HEAVY} if name in sys.modules])"
    done = run(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("name", ["API__HOST", "REDIS__URL"])
def test_a_bad_setting_stops_the_start_with_its_name(tmp_path: Path, name: str) -> None:
    done = run("import wsgi", tmp_path, **{name: "0.0.0.0"})
    assert done.returncode != 0
    assert name in done.stderr.splitlines()[-1]
