"""A worker's process whose memory grows from job to job ends between two of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import structlog

from tasks import growth, models, process
from tasks.growth import MOST_BYTES, Growth, own_bytes, used_bytes
from tasks.job import Done, Job
from tasks.perform import perform
from tests.tasks.test_models import published
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import runs

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
BASE = 3 * 2**30


class Process:
    """One of which a test says what it has, and what of that is only waiting to be collected."""

    def __init__(self) -> None:
        self.used = {"cpu": BASE, "cuda": 0}
        self.garbage = 0
        self.collected = 0
        self.growth = Growth(used=self._used, release=self._release)

    def _used(self) -> Mapping[str, int]:
        return {**self.used, "cpu": self.used["cpu"] + self.garbage}

    def _release(self) -> None:
        self.collected += 1
        self.garbage = 0


def test_memory_that_grows_little_by_little_is_too_much_once_it_is_a_gibibyte_more() -> None:
    process = Process()
    looked = []
    for _ in range(6):
        looked.append(process.growth.is_too_much())
        process.used["cpu"] += MOST_BYTES // 4

    assert looked == [False] * 5 + [True]
    assert process.collected == 2  # at first, and before it counts as too much


def test_memory_of_a_gpu_that_is_still_taken_after_a_job_counts_as_well() -> None:
    process = Process()
    assert not process.growth.is_too_much()
    process.used["cuda"] = MOST_BYTES + 1

    assert process.growth.is_too_much()


def test_what_a_collection_gives_back_is_no_growth() -> None:
    process = Process()
    assert not process.growth.is_too_much()
    process.garbage = 5 * MOST_BYTES

    assert not process.growth.is_too_much()
    assert process.collected == 2


def test_what_a_process_begins_with_is_counted_without_garbage() -> None:
    process = Process()
    process.garbage = 5 * MOST_BYTES
    assert not process.growth.is_too_much()
    process.used["cpu"] += MOST_BYTES + 1

    assert process.growth.is_too_much()


def test_a_process_that_shrinks_has_not_grown() -> None:
    process = Process()
    assert not process.growth.is_too_much()
    process.used["cpu"] = 0

    assert not process.growth.is_too_much()
    assert process.collected == 1


def test_the_numbers_are_told() -> None:
    process = Process()
    process.growth.is_too_much()
    process.used["cpu"] += 2 * MOST_BYTES

    with structlog.testing.capture_logs() as lines:
        assert process.growth.is_too_much()

    [line] = lines
    assert line["event"] == (
        "what this process has of the memory (cpu) has grown from 3.22 GB after its first job "
        "to 5.37 GB"
    )


def test_models_that_are_kept_for_the_next_request_are_no_growth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growth, "own_bytes", lambda: {"cpu": 5_000, "cuda": 30})
    monkeypatch.setattr(models, "kept_bytes", lambda: {"cpu": 1_000, "cuda": 10})

    assert used_bytes() == {"cpu": 4_000, "cuda": 20}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_counts_for_what_its_weights_have_taken(tmp_path: Path, family: str) -> None:
    """They are copies of what is in its file, of both."""
    published(tmp_path, "first", family=family)
    model = published(tmp_path, "second", family=family, size="small")
    size = (model / "model.safetensors").stat().st_size
    # of its own: what others have freed would be taken before any memory is asked for
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        grown, taken = fresh.submit(load_a_second_model, tmp_path).result(timeout=60)

    assert grown == pytest.approx(taken, abs=size / 5)
    assert taken > 0.8 * size


def load_a_second_model(root: Path) -> tuple[int, int]:
    """Bytes by which the process grows then, and those that count for the model."""
    kept = models.KeptModels(device="cpu", max_bytes=10**12)
    kept.load(root / "first")  # what it imports is no model's
    before, counted = own_bytes()["cpu"], kept.taken()
    kept.load(root / "second")
    return own_bytes()["cpu"] - before, kept.taken() - counted


def test_a_process_that_has_never_imported_the_engine_is_not_made_to() -> None:
    code = (
        "import sys\n"
        "from tasks.growth import Growth, used_bytes\n"
        "assert set(used_bytes()) == {'cpu'}\n"
        "growth = Growth(used=lambda: {'cpu': growth_to})\n"
        "growth_to = 0; growth.is_too_much()\n"
        "growth_to = 2**31; assert growth.is_too_much()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_to_look_takes_no_time_that_a_short_job_would_notice() -> None:
    growth = Growth()
    growth.is_too_much()
    asked_at = time.perf_counter()
    for _ in range(100):
        assert not growth.is_too_much()

    assert time.perf_counter() - asked_at < 1  # 10 ms each; it takes 0.1 ms


def test_a_process_whose_memory_has_grown_is_spent_though_no_job_has_failed(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked: list[bytearray] = []

    def work(_job: Job) -> Done:
        leaked.append(bytearray(b"x") * (len(leaked) * (MOST_BYTES + 2**29)))
        return Done(result="{}", result_id="run-a")

    spent = []
    for _ in range(2):
        run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
        perform(run_id, hostname="train-0@here", work=work)
        assert runs.get(process.database(), run_id).status == "completed"
        spent.append(process.spent.is_set())

    assert spent == [False, True]
