"""Checkpoints beside the training: whole, in order, and never a fault that nobody hears of."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.core.test_checkpoint import snapshot
from tests.training_bench import Recorder
from trainer_app.core import checkpoint, loop
from trainer_app.core.checkpoint import Snapshot
from trainer_app.core.checkpoint_writer import CheckpointWriter, fits_beside
from trainer_app.core.observer import StepReport, StopReason
from trainer_app.core.run_files import Stopped
from trainer_app.core.tensors import Tensors, save_tensors
from trainer_app.errors import DiskFull, LossNotFinite

if TYPE_CHECKING:
    from tests.training_bench import Bench


def test_what_is_written_is_told_once(tmp_path: Path) -> None:
    may_end = threading.Event()

    def save(snapshot: Snapshot) -> Path:
        assert may_end.wait(10)
        return tmp_path / str(snapshot.state.step)

    writer = CheckpointWriter(save)
    assert writer.finished() is None
    assert writer.wait() is None
    writer.start(snapshot(7))
    assert writer.finished() is None  # it is still at it
    may_end.set()
    report = writer.wait()
    assert report is not None
    assert (report.path, report.step) == (tmp_path / "7", 7)
    assert writer.wait() is None


def test_what_goes_wrong_is_raised_once_by_whoever_asks() -> None:
    def save(_snapshot: Snapshot) -> Path:
        raise DiskFull("no space")

    writer = CheckpointWriter(save)
    writer.start(snapshot(1))
    with pytest.raises(DiskFull):
        writer.wait()
    assert writer.wait() is None


@pytest.mark.parametrize(
    ("available", "limit", "fits"),
    [
        ("MemAvailable:      16 kB", None, True),
        ("MemAvailable:      15 kB", None, False),
        ("MemAvailable:      16 kB", "max", True),
        ("MemAvailable:      99 kB", "20480", True),
        ("MemAvailable:      99 kB", "20479", False),
        ("MemFree:      1 kB", "20480", True),
        ("?", None, True),
        (None, None, True),
    ],
)
def test_a_copy_is_made_where_there_is_plenty_of_memory(
    tmp_path: Path, available: str | None, limit: str | None, *, fits: bool
) -> None:
    machine, container = tmp_path / "proc" / "meminfo", tmp_path / "sys" / "fs" / "cgroup"
    for folder in (machine.parent, container):
        folder.mkdir(parents=True)
    if available is not None:
        machine.write_text(f"MemTotal: 9999 kB\n{available}\n")
    if limit is not None:
        (container / "memory.max").write_text(f"{limit}\n")
        (container / "memory.current").write_text("4096\n")
    assert fits_beside({"a": torch.zeros(1000), "b": torch.zeros(24)}, tmp_path) is fits


def test_the_training_goes_on_while_a_checkpoint_is_written_of_the_step_that_it_was_taken_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fits_beside", lambda _tensors: False)
    bench.fit(bench.spec, Recorder(stop_after=5), run="before", checkpoint_seconds=0.0)
    monkeypatch.undo()

    class Stepping(Recorder):
        """Lets a checkpoint be written once the step after it was taken."""

        def should_stop(self) -> StopReason | None:
            writing = [one for one in threading.enumerate() if one.name == "checkpoint"]
            if writing:
                went_on.append(writing[0])
            may_write.set()
            reason: StopReason | None = super().should_stop()
            if reason is not None:
                stopping.set()
            return reason

    went_on: list[threading.Thread] = []
    may_write, stopping = threading.Event(), threading.Event()

    def slow(path: Path, tensors: Tensors) -> None:
        assert stopping.is_set() or may_write.wait(30)
        save_tensors(path, tensors)

    def forget(_report: object) -> None:
        may_write.clear()

    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    observer = Stepping(stop_after=5)
    monkeypatch.setattr(observer, "on_checkpoint", forget)
    stopped = bench.fit(bench.spec, observer, run="beside", checkpoint_seconds=0.0)

    assert isinstance(stopped, Stopped)
    assert went_on
    before, beside = (bench.folder / run / "checkpoints" for run in ("before", "beside"))
    names = sorted(path.name for path in before.iterdir())
    assert names == sorted(path.name for path in beside.iterdir())
    for name in names:
        for file in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
            assert (before / name / file).read_bytes() == (beside / name / file).read_bytes()


def test_a_full_disk_is_told_by_the_run_also_when_training_has_gone_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _tensors: Tensors) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(DiskFull, match="step-000000001"):
        bench.fit(bench.spec, Recorder(), checkpoint_seconds=0.0)


def test_a_stop_keeps_a_checkpoint_though_the_disk_did_not_take_the_one_that_was_being_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Recorder):
        """Asks to stop as soon as a checkpoint is being written."""

        def should_stop(self) -> StopReason | None:
            if any(one.name == "checkpoint" for one in threading.enumerate()):
                stopping.set()
            return StopReason.DRAIN if stopping.is_set() else None

    stopping = threading.Event()
    refused: list[Path] = []

    def full_for_a_moment(path: Path, tensors: Tensors) -> None:
        if not refused:
            refused.append(path)
            assert stopping.wait(30)
            raise OSError(errno.ENOSPC, "No space left on device")
        save_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", full_for_a_moment)
    observer = Stopping()
    stopped = bench.fit(bench.spec, observer, checkpoint_seconds=0.0)

    assert isinstance(stopped, Stopped)
    assert refused
    assert stopped.checkpoint is not None
    assert [(one.path, one.step) for one in observer.checkpoints] == [
        (stopped.checkpoint, stopped.step)
    ]
    assert not [message for message in observer.messages if "could be written" in message]


def test_no_writer_outlives_its_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recorder):
        def on_steps(self, steps: Sequence[StepReport]) -> None:
            if steps[-1].step > 1:
                raise LossNotFinite("it became nan")

    def slow(path: Path, tensors: Tensors) -> None:
        time.sleep(0.2)
        save_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    with pytest.raises(LossNotFinite):
        bench.fit(bench.spec, Broken(), checkpoint_seconds=0.0)
    assert "checkpoint" not in [one.name for one in threading.enumerate()]
