"""Requests per second of the API behind its real server, one JSON line a figure.

    python -m benchmarks.service [--seconds 5] [--clients 8]

Starts a broker, a SQLite database and gunicorn of its own in a temporary folder. The clients are
threads of this process: on a small machine they take their share of it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer_app.core.spec import TokenizerSpec
from trainer_app.settings import load_settings
from trainer_app.stack import broker
from trainer_app.stack.ports import free_port
from trainer_app.store import lease, migrate, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.tables import Status

HOST = "127.0.0.1"


@contextmanager
def process(*command: str) -> Iterator[None]:
    """A process for as long as the block."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        started.terminate()
        started.wait(30)


def prepare(root: Path) -> dict[str, str]:
    """A corpus and a finished tokenizer; the body of a run that uses them."""
    settings = load_settings()
    migrate.upgrade(settings.database_url)
    (root / "corpus").mkdir()
    (root / "corpus" / "tale.txt").write_text("Once upon a time.\n" * 1_000)
    database = Database(settings.database_url)
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id="words")
    job_id = tokenizers.create(database, spec, queue="trainer.light").job_id
    claim = lease.claim(database, job_id, "benchmark", lease_seconds=60)
    assert claim is not None
    lease.finish(database, claim, Status.COMPLETED)
    database.close()
    return {"corpus_path": "tale.txt", "tokenizer_id": "words", "model_size": "tiny"}


class Args(argparse.Namespace):
    """The command line."""

    seconds: float
    clients: int


class Client(threading.Thread):
    """Sends one request again and again over one connection; counts answers and their times."""

    def __init__(self, port: int, method: str, path: str, body: str | None, until: float) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)
        self._request = (method, path, body, {"Content-Type": "application/json"} if body else {})
        self._until = until
        self.seconds: list[float] = []

    def run(self) -> None:
        """Until the time is over; an answer of another kind ends the thread with an error."""
        while (began := time.monotonic()) < self._until:
            method, path, body, headers = self._request
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            answer.read()
            assert answer.status < 300, answer.status
            self.seconds.append(time.monotonic() - began)


def measure(port: int, name: str, request: tuple[str, str, str | None], args: Args) -> None:
    """Print the rate and the times of one kind of request."""
    until = time.monotonic() + args.seconds
    clients = [Client(port, *request, until) for _ in range(args.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seconds = sorted(second for client in clients for second in client.seconds)
    figures = {
        "benchmark": name,
        "clients": args.clients,
        "requests": len(seconds),
        "per_second": round(len(seconds) / args.seconds, 1),
        "median_ms": round(1_000 * seconds[len(seconds) // 2], 2),
        "p99_ms": round(1_000 * seconds[int(len(seconds) * 0.99)], 2),
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Measure reading, listing and starting runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args(namespace=Args())
    port = free_port(HOST)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        queue = broker.configure(root)
        os.environ |= {
            "APP__DATA_ROOT": folder,
            "REDIS__URL": queue.url,
            "API__PORT": str(port),
            "LOGGING__LEVEL": "WARNING",
        }
        body = json.dumps(prepare(root))
        gunicorn = (
            *(sys.executable, "-m", "gunicorn", "wsgi:app"),
            *("--config", "python:trainer_app.stack.gunicorn_conf"),
        )
        with process(*queue.command), process(*gunicorn):
            run_id = _first_run(port, body)
            measure(port, "GET /healthz", ("GET", "/healthz", None), args)
            measure(port, "GET /runs/{run_id}", ("GET", f"/runs/{run_id}", None), args)
            measure(port, "GET /runs", ("GET", "/runs", None), args)
            measure(port, "POST /runs/train", ("POST", "/runs/train", body), args)


def _first_run(port: int, body: str) -> str:
    """Wait for the server; the id of a run to read."""
    give_up_at = time.monotonic() + 30
    while True:
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=30)
            connection.request("POST", "/runs/train", body, {"Content-Type": "application/json"})
            run_id: str = json.load(connection.getresponse())["run_id"]
        except (OSError, KeyError):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)
        else:
            return run_id


if __name__ == "__main__":
    main()
