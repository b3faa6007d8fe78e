"""The API behind its real server, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from trainer_app.stack.ports import free_port

ROOT = Path(__file__).parents[2]


@contextmanager
def served(log: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """A server with this environment beside the test's own; its port."""
    port = free_port("127.0.0.1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "wsgi:app"),
                *("--config", "python:trainer_app.stack.gunicorn_conf"),
            ],
            cwd=ROOT,
            env={**os.environ, **environment, "API__PORT": str(port)},
            stdout=output,
            stderr=output,
        )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server does not start")
