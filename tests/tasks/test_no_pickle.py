"""No pickle: whoever can write a checkpoint, a model or a message cannot run code in a worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer_app.settings import Settings

ROOT = Path(__file__).parents[2]


def run_watched(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_a_worker_that_trains_is_stopped_resumes_and_serves_unpickles_nothing(
    settings: Settings,
) -> None:
    done = run_watched("import tests.tasks.without_pickle as w, sys; sys.exit(w.main())")
    assert (done.returncode, done.stdout.strip()) == (0, ""), (
        done.stdout[-5_000:] + done.stderr[-5_000:]
    )


def test_the_watch_sees_what_is_unpickled() -> None:
    code = (
        "import pickle, tests.tasks.without_pickle as w; "
        "pickle.loads(pickle.dumps(w.train)); print(len(w.offences))"
    )
    assert run_watched(code).stdout.strip() == "1"
