"""A full or failing disk while a run is published: no torn model is ever to be seen."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks import process, training
from tasks.job import Done, Job
from tasks.perform import perform
from tests.disk_faults import failing_disk
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.core.files import sha256_file
from trainer_app.errors import DiskFull
from trainer_app.log import JobLog
from trainer_app.restore import is_whole
from trainer_app.settings import Settings
from trainer_app.store import pauses, runs


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, OSError)])
@pytest.mark.parametrize("before", [False, True], ids=["the first", "in place of one"])
def test_a_published_model_is_whole_or_not_there(
    tmp_path: Path, number: int, error: type[Exception], before: bool
) -> None:
    for n in range(1, 100):
        final = tmp_path / str(n) / "models" / "run-a"

        def staged(weights: bytes, at: Path = final.parent.parent / "staging") -> Path:
            (at / "eval").mkdir(parents=True, exist_ok=True)
            (at / "model.safetensors").write_bytes(weights)
            (at / "eval" / "metrics.json").write_bytes(b"{}")
            return at

        if before:
            artifacts.publish(staged(b"old"), final, {})
        staging = staged(b"weights")
        with failing_disk(n, number) as disk:
            try:
                artifacts.publish(staging, final, {})
            except error:
                assert disk.failed
        if not disk.failed:
            break

        assert final.exists() or not before
        if final.exists():
            assert is_whole(final)
            for file in artifacts.pointer(final).files:
                assert sha256_file(final / file.name) == file.sha256
        artifacts.publish(staged(b"weights"), final, {})  # the next attempt
        assert (final / "model.safetensors").read_bytes() == b"weights"
    assert 8 < n < 99


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 2 MB for what runs write."""
    with mounted(worker.paths.runs, "size=2m"):
        yield worker.paths.runs


@pytest.fixture
def start(queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    monkeypatch.setenv("JOBS__CHECKPOINT_SEC", "0")
    process.settings.cache_clear()
    return queue_run


def test_a_run_on_a_full_disk_is_retried_then_fails_with_the_code_and_can_be_resumed(
    small_disk: Path, start: Callable[[], str]
) -> None:
    run_id = start()
    perform(run_id, hostname="train-0@here", work=training.work)
    first = runs.get(process.database(), run_id)
    perform(run_id, hostname="train-0@here", work=training.work)
    second = runs.get(process.database(), run_id)

    assert (first.status, second.status, second.error_code) == ("queued", "failed", "DISK_FULL")
    assert "No space left" in second.message
    assert not artifacts.model_directory(process.settings(), run_id).exists()

    larger = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(larger, check=True, timeout=10)
    pauses.resume(process.database(), run_id)
    perform(run_id, hostname="train-0@here", work=training.work)
    assert runs.get(process.database(), run_id).status == "completed"
    assert is_whole(artifacts.model_directory(process.settings(), run_id))


@pytest.mark.parametrize("folder", ["runs", "tokens"])
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("size=4k", "DISK_FULL", "could not be written: No space left on device"),
        ("ro", "INTERNAL_ERROR", "could not be read or written: Read-only file system"),
    ],
)
def test_a_run_names_the_place_that_cannot_be_used_and_why(
    worker: Settings, start: Callable[[], str], folder: str, options: str, code: str, words: str
) -> None:
    place = {"runs": worker.paths.runs, "tokens": worker.paths.tokens}[folder]
    with mounted(place, options):
        run_id = start()
        for _ in range(2):
            perform(run_id, hostname="train-0@here", work=training.work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", code)
    assert run.message.startswith(f"{place}")
    assert run.message.endswith(words)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), "DISK_FULL", "{root} could not be written: No"),
        (OSError(errno.ENOSPC, "No space left", "/a", None, "/b"), "DISK_FULL", "/b could not be"),
        (OSError(errno.EIO, "Input/output error"), "INTERNAL_ERROR", "{root} could not be read or"),
        (OSError(errno.EACCES, "Denied", "/a/b"), "INTERNAL_ERROR", "/a/b could not be read or"),
        (OSError(errno.EACCES, "Denied"), "INTERNAL_ERROR", "PermissionError: "),  # no file at all
    ],
)
def test_an_error_of_the_system_is_told_with_the_file_that_it_is_about(
    worker: Settings, start: Callable[[], str], error: OSError, code: str, message: str
) -> None:
    def work(_job: Job) -> Done:
        raise error

    run_id = start()
    for _ in range(2):
        perform(run_id, hostname="train-0@here", work=work)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", code)
    assert run.message.startswith(message.format(root=worker.paths.data_root))


@pytest.mark.slow
def test_a_run_completes_whichever_operation_of_the_disk_fails_once(
    worker: Settings, start: Callable[[], str]
) -> None:
    weights = set()
    for n in (1, 5, 10, 20, 30, 40, 60, 80, 100, 120, 140, 160, 10_000):
        run_id = start()
        with failing_disk(n, errno.EIO):
            perform(run_id, hostname="train-0@here", work=training.work)
            perform(run_id, hostname="train-0@here", work=training.work)
        assert runs.get(process.database(), run_id).status == "completed"
        folder = artifacts.model_directory(process.settings(), run_id)
        weights.add(sha256_file(folder / "model.safetensors"))
    assert len(weights) == 1


def test_a_log_that_cannot_be_written_costs_lines_and_not_the_job(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = JobLog(small_disk / "logs" / "run-a.jsonl")
    filler = small_disk / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(3_000_000))
    log.info("x" * 50_000)
    filler.unlink()
    log.info("after")
    log.close()
    JobLog(filler / "none").close()

    last = (small_disk / "logs" / "run-a.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "after"


def test_a_run_whose_log_was_never_written_completes(
    start: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("APP__LOGS_ROOT", str(tmp_path / "file" / "logs"))
    process.settings.cache_clear()
    run_id = start()

    perform(run_id, hostname="train-0@here", work=training.work)

    assert runs.get(process.database(), run_id).status == "completed"
    assert is_whole(artifacts.model_directory(process.settings(), run_id))


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JobLog(path)
    real = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, data[:10]))
        log.info("first")
    log.info("second")
    log.close()
    cut, whole = path.read_text().splitlines()
    assert len(cut) == 10
    assert json.loads(whole)["event"] == "second"
