"""A run's curve beside its checkpoints: what a killed process had not yet told the database.

Points reach the database in batches by time, and wait while it is away; a checkpoint may be newer
than the last batch. A resume goes on behind such points: they come from here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tasks.reporting import RowReporter, point_of
from trainer_app.core.observer import EvaluationReport, Silent, StartReport, StepReport
from trainer_app.store import metrics
from trainer_app.store.database import Database
from trainer_app.store.metrics import MetricPoint

_MEASURED: Final = (
    "step",
    "epoch",
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_sec",
    "chain",
)


class Journal(Silent):
    """Appends each point to a file of its attempt, and gives back what is missing at a start."""

    def __init__(
        self, folder: Path, rows: RowReporter, database: Database, *, run_id: str, attempt: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._rows = rows
        self._database = database
        self._run_id = run_id
        path = folder / f"curve-{attempt}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def on_start(self, start: StartReport) -> None:
        if start.first_step == 0:
            return
        known = {(p.step, p.val_loss is None) for p in metrics.curve(self._database, self._run_id)}
        self._rows.add(
            point
            for point in self._written()
            if point.step <= start.first_step and (point.step, point.val_loss is None) not in known
        )

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._append([point_of(step) for step in steps])

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        step, epoch = evaluation.step, evaluation.epoch
        self._append([MetricPoint(step=step, epoch=epoch, val_loss=evaluation.val_loss)])

    def _append(self, points: Sequence[MetricPoint]) -> None:
        lines = [json.dumps({name: getattr(point, name) for name in _MEASURED}) for point in points]
        # A full disk fails the run at its next checkpoint, which says so; not here.
        with suppress(OSError):
            os.write(self._file, "".join(f"{line}\n" for line in lines).encode())

    def _written(self) -> list[MetricPoint]:
        points = []
        for path in sorted(self._folder.glob("curve-*.jsonl")):
            for line in path.read_text().splitlines():
                with suppress(ValueError, TypeError):  # a line that a full disk has cut
                    points.append(MetricPoint(**json.loads(line)))
        return points
