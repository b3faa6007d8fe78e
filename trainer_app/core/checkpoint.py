"""Checkpoints that survive a crash at any moment: safetensors and JSON, never pickle.

``checkpoints/step-<n>-attempt-<a>/`` holds model, optimizer and rng .safetensors, best.safetensors
where there was an evaluation (a hard link while the best stays the best), state.json and, written
last, MANIFEST.json with the SHA-256 of each. A folder appears by one rename; two are kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from trainer_app.core.device import Fingerprint
from trainer_app.core.files import (
    disk_full_named,
    replace_directory,
    sha256_file,
    temporary_beside,
)
from trainer_app.core.run_state import RunState
from trainer_app.core.tensors import Tensors, load_tensors, save_tensors

KEPT: Final = 2
MANIFEST: Final = "MANIFEST.json"
STATE: Final = "state.json"
BEST: Final = "best.safetensors"
_NAME: Final = re.compile(r"step-(\d+)-attempt-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that it takes to go on as if nothing had happened."""

    state: RunState
    fingerprint: Fingerprint
    model: Tensors
    optimizer: Tensors
    random: Tensors  # states of the generators
    best: Tensors | None  # weights of the best evaluation; None before the first
    scaler: dict[str, float] | None  # of fp16's loss scale


class Damaged(Exception):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one run, written by one attempt at it."""

    def __init__(
        self, directory: Path, *, attempt: int, confirm: Callable[[], None] = lambda: None
    ) -> None:
        """``confirm`` is called before a checkpoint appears, and raises where none is to."""
        self._directory = directory
        self._attempt = attempt
        self._confirm = confirm
        self._best: tuple[int, Path] | None = None  # step and file of the best weights on disk

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint durably, then remove all but the newest two. Raises DiskFull."""
        name = f"step-{snapshot.state.step:09d}-attempt-{self._attempt}"
        final = self._directory / name
        temporary = temporary_beside(final)
        try:
            with disk_full_named(final):
                temporary.mkdir(parents=True)
                self._write(temporary, snapshot)
            self._confirm()
            replace_directory(temporary, final)  # a stop may follow a checkpoint at its step
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if snapshot.best is not None:
            self._best = (snapshot.state.best_step, final / BEST)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load_newest(self, on_message: Callable[[str], None]) -> tuple[Snapshot, Path] | None:
        """The newest whole checkpoint; None where there is none.

        Damaged ones, newer than that, are reported and removed. Left-overs of a crash are removed.
        """
        for left_over in self._directory.glob(".*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        for path in self._newest_first():
            try:
                snapshot = _load(path)
            except Damaged as damage:
                on_message(f"checkpoint {path.name} is damaged and left out: {damage}")
                shutil.rmtree(path, ignore_errors=True)
                continue
            if snapshot.best is not None:
                self._best = (snapshot.state.best_step, path / BEST)
            return snapshot, path
        return None

    def _write(self, directory: Path, snapshot: Snapshot) -> None:
        save_tensors(directory / "model.safetensors", snapshot.model)
        save_tensors(directory / "optimizer.safetensors", snapshot.optimizer)
        save_tensors(directory / "rng.safetensors", snapshot.random)
        if snapshot.best is not None and not self._link_best(directory, snapshot.state.best_step):
            save_tensors(directory / BEST, snapshot.best)
        state = {
            "state": asdict(snapshot.state),
            "fingerprint": asdict(snapshot.fingerprint),
            "scaler": snapshot.scaler,
        }
        (directory / STATE).write_text(json.dumps(state, indent=2, sort_keys=True))
        digests = {path.name: sha256_file(path) for path in sorted(directory.iterdir())}
        (directory / MANIFEST).write_text(json.dumps(digests, indent=2, sort_keys=True))

    def _link_best(self, directory: Path, best_step: int) -> bool:
        """Whether the best weights could be taken over from a checkpoint before."""
        if self._best is None or self._best[0] != best_step:
            return False
        try:
            os.link(self._best[1], directory / BEST)
        except OSError:  # the file is gone, or the file system has no hard links
            return False
        return True

    def _newest_first(self) -> list[Path]:
        """Finished checkpoints; of a later attempt before those of an earlier one."""
        if not self._directory.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self._directory.iterdir()]
        ordered = sorted(
            ((int(match[2]), int(match[1]), path) for match, path in found if match), reverse=True
        )
        return [path for _, _, path in ordered]


def _load(directory: Path) -> Snapshot:
    """Read and verify a checkpoint; raises Damaged."""
    try:
        digests: dict[str, str] = json.loads((directory / MANIFEST).read_text())
        for name, digest in digests.items():
            if sha256_file(directory / name) != digest:
                raise Damaged(f"{name} is not what was written")
        state = json.loads((directory / STATE).read_text())
        return Snapshot(
            state=RunState(**{"loss_chain": None} | state["state"]),
            fingerprint=Fingerprint(**state["fingerprint"]),
            scaler=state["scaler"],
            model=load_tensors(directory / "model.safetensors"),
            optimizer=load_tensors(directory / "optimizer.safetensors"),
            random=load_tensors(directory / "rng.safetensors"),
            best=load_tensors(directory / BEST) if BEST in digests else None,
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
