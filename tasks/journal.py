"""A run's curve beside its checkpoints: what the database has not been told.

Points reach the database in batches by time, and wait while it is away; a checkpoint may be newer
than the last batch. A resume goes on behind such points: they come from here. So do those that
were too many to be kept in memory while the database was away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import FileIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from tasks.reporting import points_of
from trainer_app.core.files import DAMAGE, fsync_directory, make_own_folder
from trainer_app.core.observer import (
    CheckpointReport,
    EvaluationReport,
    Silent,
    StartReport,
    StepReport,
)
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import LeaseLost, Unavailable
from trainer_app.safe_paths import open_regular
from trainer_app.store import lease, metrics
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, Progress
from trainer_app.store.metrics import MetricPoint

_MEASURED: Final = (
    "step",
    "epoch",
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_sec",
    "step_ms",
    "mfu",
    "chain",
)
_STEP: Final = '{"step": '  # how a line begins
_CHAIN_END: Final = '"}\n'  # how one ends that has a chain
_BEGINNING: Final = re.compile(f"{re.escape(_STEP)}([0-9]{{1,18}}),")  # within 64 bits
_LARGEST: Final = 2**31 - 1  # of a step
_BLOCK: Final = 1 << 20  # characters in memory
_AT_ONCE: Final = 500  # points in one question
_NAME: Final = re.compile(r"curve-(0|[1-9][0-9]{0,8})\.jsonl")  # by attempt

_log = structlog.get_logger(__name__)


class Journal(Silent):
    """Appends each point to a file of its attempt, and gives back what is missing at a start."""

    def __init__(self, folder: Path, database: Database, claim: Claim) -> None:
        """Raises OSError where the file cannot be made, and TrainerError for such a folder."""
        if make_own_folder(folder):
            _log.warning("a file stood in the place of the run's folder", job_id=claim.job_id)
        self._folder = folder
        self._database = database
        self._claim = claim
        self.is_behind = False  # what earlier attempts have measured could not be told
        self._unwritten = b""  # lines that the disk did not take
        self._torn = False  # the file may end within a line
        # An object, not a number: once it is closed, its number is another file's.
        self._file = _opened(_path(folder, claim.attempt))

    def close(self) -> None:
        """Close the file, once it is on the disk."""
        self._sync()
        self._file.close()

    def on_start(self, start: StartReport) -> None:
        """Raises LeaseLost."""
        if start.first_step:
            try:
                self.tell_missing(up_to=start.first_step)
            except Unavailable:
                self.is_behind = True  # the work does not wait for the database

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._append(points_of(steps))

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        step, epoch = evaluation.step, evaluation.epoch
        self._append([MetricPoint(step=step, epoch=epoch, val_loss=evaluation.val_loss)])

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """What lies before a checkpoint is not measured again: it is to outlive the machine."""
        del checkpoint
        self._sync()

    def tell_missing(self, *, up_to: int) -> None:
        """Give the database the points up to a step that it does not have.

        One that cannot be written at all is left out, and the log says so: the model is worth more.
        Raises LeaseLost and Unavailable, and ValueError once the journal is closed.
        """
        self._write()
        # The newest attempt has the say about what more than one has measured.
        for attempt in sorted(attempts(self._folder), reverse=True):
            for lines in self._blocks(_path(self._folder, attempt)):
                untold = _points(self._untold(lines, up_to), attempt)
                points = (point for point in untold if point.step <= up_to)
                while some := list(islice(points, _AT_ONCE)):
                    lacking = metrics.lacking(self._database, self._claim.job_id, some)
                    if lacking:
                        self._tell(lacking)

    def _blocks(self, path: Path) -> Iterator[list[str]]:
        try:
            with TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace") as file:
                while lines := file.readlines(_BLOCK):
                    yield lines
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            _log.warning(
                "a part of the curve cannot be read",
                job_id=self._claim.job_id,
                file=path.name,
                error=str(error),
            )

    def _untold(self, lines: Sequence[str], up_to: int) -> Sequence[str]:
        """All but those whose loss the database is found to have, which are not worth a look.

        A long curve is nearly all there, and the run waits. No note of how far the database was
        told is believed: it may have been restored since, or cut.
        """
        first, last = _BEGINNING.match(lines[0]), _BEGINNING.match(lines[-1])
        if first is None or last is None or int(first[1]) > up_to:
            return lines
        told = metrics.losses_told(
            self._database,
            self._claim.job_id,
            first=int(first[1]),
            last=min(int(last[1]), up_to),
        )
        return [line for line in lines if _loss(line) not in told]

    def _tell(self, points: Sequence[MetricPoint]) -> None:
        try:
            lease.progress(self._database, self._claim, Progress(), points)
        except (LeaseLost, Unavailable, StopRequested):
            raise
        except Exception:
            if len(points) > 1:
                for point in points:
                    self._tell([point])
            else:
                _log.exception(
                    "a point was left out", job_id=self._claim.job_id, step=points[0].step
                )

    def _append(self, points: Iterable[MetricPoint]) -> None:
        lines = [json.dumps({name: getattr(point, name) for name in _MEASURED}) for point in points]
        self._unwritten += "".join(f"{line}\n" for line in lines).encode()
        self._write()

    def _write(self) -> None:
        """Write what waits; what the disk does not take waits for the next time.

        A disk that stays full fails the run at its next checkpoint, which says so; not here.
        """
        if not self._unwritten:
            return
        lines = self._unwritten
        before = b"\n" if self._torn else b""
        self._torn = True  # an error says nothing of how much was taken
        with suppress(OSError):
            taken = max(0, os.write(self._file.fileno(), before + lines) - len(before))
            whole = lines.rfind(b"\n", 0, taken) + 1  # a line that was cut is written again
            self._unwritten = lines[whole:]
            self._torn = taken < len(lines)

    def _sync(self) -> None:
        self._write()
        with suppress(OSError):
            os.fsync(self._file.fileno())
            fsync_directory(self._folder)


def attempts(folder: Path) -> list[int]:
    """The attempts that have left a file there. Raises OSError."""
    named = (_NAME.fullmatch(path.name) for path in folder.glob("curve-*"))
    return [int(name[1]) for name in named if name is not None]


def _path(folder: Path, attempt: int) -> Path:
    return folder / f"curve-{attempt}.jsonl"


def _opened(path: Path) -> FileIO:
    """A file to append to, in place of whatever else somebody has put there."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        elif not stat.S_ISREG(mode):
            path.unlink()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return FileIO(os.open(path, flags, 0o666), "ab")


def _loss(line: str) -> str | None:
    """What ``losses_told`` has of a line that a training loss was measured in, and no other.

    Anything of a line of another form: no row has that. Many times as quick as to parse it.
    """
    if '"val_loss": null' not in line:
        return None
    return line[len(_STEP) : line.find(",")] + line[-len(_CHAIN_END) - 64 : -len(_CHAIN_END)]


def _points(lines: Iterable[str], attempt: int) -> Iterator[MetricPoint]:
    for line in lines:
        # a line that a full disk has cut, or that somebody has edited
        with suppress(ValueError, TypeError, RecursionError):
            measured = json.loads(line)
            # a version after this one may have measured more
            known = {name: measured[name] for name in _MEASURED if name in measured}
            if all(_fits(name, value) for name, value in known.items()):
                yield MetricPoint(**known, attempt=attempt)


def _fits(name: str, value: object) -> bool:
    """Whether it is of the type that was written, and the database can hold it."""
    if name in {"step", "epoch"}:
        return type(value) is int and 0 <= value <= _LARGEST
    return value is None or isinstance(value, str if name == "chain" else int | float)
