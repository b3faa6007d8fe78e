"""Checkpoints are summed by what every worker that may have to read them knows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tasks import process, reporting, training
from tasks.held import draining
from tasks.perform import perform
from tests.tasks.tiny_runs import ENDLESS, QueueRun
from trainer_app.core.sums import SHA256, XXH3, algorithm_of
from trainer_app.queue import WORKER_KEY
from trainer_app.store import runs

if TYPE_CHECKING:
    from trainer_app.core.observer import CheckpointReport

THIS_VERSION = {"queues": ["trainer"], "memory_bytes": {}, "reads_sums": [XXH3, SHA256]}
THE_ONE_BEFORE = {"queues": ["trainer"], "memory_bytes": {}}


def algorithms(report: CheckpointReport) -> set[str]:
    sums: dict[str, str] = json.loads((report.path / "MANIFEST.json").read_text())
    return {algorithm_of(known) for known in sums.values()}


@pytest.fixture
def run_id(queue_run: QueueRun, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JOBS__CHECKPOINT_SEC", "0")
    process.settings.cache_clear()
    return queue_run(max_steps=ENDLESS)


@pytest.mark.parametrize(
    ("alive", "algorithm"),
    [
        ([THIS_VERSION], XXH3),
        ([THIS_VERSION, THE_ONE_BEFORE], SHA256),
        ([THIS_VERSION, THIS_VERSION | {"reads_sums": [SHA256]}], SHA256),
        ([], SHA256),  # nobody can know
    ],
)
def test_a_checkpoint_is_one_for_all_who_are_there_and_the_last_one_for_whoever_comes(
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    alive: list[dict[str, object]],
    algorithm: str,
) -> None:
    for number, told in enumerate(alive):
        process.redis_client().set(f"{WORKER_KEY}{number}", json.dumps(told), ex=60)
    written: list[set[str]] = []
    tell = reporting.RowReporter.on_checkpoint

    def look(rows: reporting.RowReporter, report: CheckpointReport) -> None:
        written.append(algorithms(report))
        if len(written) == 3:
            draining.set()
        tell(rows, report)

    monkeypatch.setattr(reporting.RowReporter, "on_checkpoint", look)

    perform(run_id, hostname="train-0@here", work=training.work)

    assert runs.get(process.database(), run_id).status == "queued"
    assert written[:3] == [{algorithm}] * 3
    assert written[-1] == {SHA256}


def test_a_broker_that_is_away_can_tell_of_nobody(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[set[str]] = []

    def look(_rows: reporting.RowReporter, report: CheckpointReport) -> None:
        written.append(algorithms(report))
        draining.set()

    monkeypatch.setattr(reporting.RowReporter, "on_checkpoint", look)
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()

    perform(run_id, hostname="train-0@here", work=training.work)

    assert set(map(frozenset, written)) == {frozenset({SHA256})}
