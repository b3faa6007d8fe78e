"""A whole stack on a disk that fills up while a run trains, and has room again later."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.victim import RunTest, Victim, becomes, runs_as
from trainer_app.core.sums import is_sum_of
from trainer_app.replies import Run

_BYTES = 96 * 1024 * 1024  # of the disk
_LONGER_THAN_A_LEASE = 15.0  # seconds
_BLOCK = bytes(64 * 1024)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Leave no byte of the folder's disk to anybody, nor what is given back meanwhile."""
    is_full, ended = threading.Event(), threading.Event()
    path = folder / "filling"

    def fill() -> None:
        with path.open("wb", buffering=0) as file:
            while not ended.wait(0.02):
                size = len(_BLOCK)
                while size:
                    try:
                        file.write(_BLOCK[:size])
                    except OSError:
                        size //= 2
                is_full.set()

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert is_full.wait(60)
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The data root of the stack, on a disk of its own in memory."""
    folder = tmp_path / "data"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def further_settings(small_disk: Path, either_database: dict[str, str]) -> dict[str, str]:
    """Without a retry where the database has room elsewhere: what failed can be seen at once."""
    retries = "0" if either_database else "5"
    return {"CELERY__RETRY_MAX": retries, "CELERY__RETRY_INTERVALS_SEC": "1"} | either_database


def check_reading(http: httpx.Client, run_id: str, completed: str) -> None:
    """What is there can be read."""
    for path in (
        "/healthz",
        "/runs",
        f"/runs/{run_id}",
        f"/runs/{run_id}/logs",
        f"/runs/{run_id}/metrics",
        f"/runs/{completed}/artifact",
        f"/runs/{completed}/artifact/manifest.json",
        f"/runs/{completed}/artifact.tar.gz",
        "/corpora",
        "/tokenizers",
    ):
        assert http.get(path).status_code == 200, path


def check_writing(http: httpx.Client, victim: Victim, completed: str) -> None:
    """What would have to be written is refused, with the one body of errors."""
    corpus = {"corpus_file_id": victim.corpus_file_id}
    train = {"model_family": "char_lstm", "model_size": "tiny", "max_steps": 2} | corpus
    for path, body in (
        ("/runs/train", train),
        ("/tokenizers/train", {"method": "bpe", "vocab_size": 300} | corpus),
        (f"/runs/{completed}/evaluate", {}),
        (f"/runs/{completed}/generate", {"prompt_text": "a"}),
        (f"/runs/{completed}/score", {"text": "some text"}),
        (f"/runs/{completed}/chat", {"message": "a"}),
    ):
        check_refused(http, path, json=body)
    text = {"Content-Type": "text/plain"}
    check_refused(http, "/corpora", content=b"a text that is new\n" * 10_000, headers=text)


def check_refused(
    http: httpx.Client,
    path: str,
    *,
    json: Mapping[str, object] | None = None,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """A POST is refused, if not the first one: what others remove is room for a moment."""
    give_up_at = time.monotonic() + 30
    while (answer := http.post(path, json=json, content=content, headers=headers)).is_success:
        assert time.monotonic() < give_up_at, answer.text
    assert answer.status_code in {413, 503}, answer.text
    assert answer.json().keys() == {"code", "message", "request_id"}


def has_resumed(*, beyond: int) -> RunTest:
    """Whether a later attempt trains, from this step or a later one on."""

    def holds(run: Run) -> bool:
        told = re.search(r"resumed from (\d+)", run["message"])
        return run["status"] == "running" and told is not None and int(told[1]) >= beyond

    return holds


def torn(victim: Victim, run_id: str) -> list[str]:
    """Files of the run's checkpoints that are not what their manifests say."""
    folder = victim.stack.data_root / "runs" / run_id / "checkpoints"
    bad = []
    for manifest in folder.glob("step-*/MANIFEST.json"):
        with suppress(FileNotFoundError):  # a newer one has taken its place meanwhile
            digests = json.loads(manifest.read_text())
            bad += [
                str(manifest.parent / name)
                for name, digest in digests.items()
                if not is_sum_of(manifest.parent / name, digest)
            ]
    return bad


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_full_disk_refuses_what_is_new_and_harms_nothing_that_is_there(
    victim: Victim, small_disk: Path, either_database: dict[str, str]
) -> None:
    completed = victim.start_run(steps=2)
    victim.until(completed, lambda run: run["status"] == "completed", seconds=60)
    run_id = victim.start_run()
    victim.until(run_id, runs_as(attempt=1), seconds=60)
    saved = victim.checkpoint(run_id)
    processes = victim.stack.state["processes"]

    with httpx.Client(base_url=victim.stack.api_url, timeout=30) as http:
        with filled(small_disk):
            becomes(http, "/readyz", 503, seconds=60)  # the broker refuses to take anything
            check_reading(http, run_id, completed)
            check_writing(http, victim, completed)
            if either_database:
                run = victim.until(run_id, lambda run: run["status"] == "failed", seconds=120)
                assert run["error_code"] == "DISK_FULL"
            else:
                time.sleep(_LONGER_THAN_A_LEASE)
            check_reading(http, run_id, completed)
            assert torn(victim, run_id) == []

        becomes(http, "/readyz", 200, seconds=120)
    if either_database:
        victim.client.resume_run(run_id)
    victim.until(run_id, has_resumed(beyond=saved), seconds=120)
    after = victim.start_run(steps=2)
    victim.client.cancel_run(run_id)
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    victim.until(after, lambda run: run["status"] == "completed", seconds=120)
    assert victim.stack.state["processes"] == processes
