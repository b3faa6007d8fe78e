"""Checkpoints that survive a crash at any moment: safetensors and JSON, never pickle.

``checkpoints/step-<n>-attempt-<a>/`` holds model, optimizer and rng .safetensors, best.safetensors
where there was an evaluation, state.json and, written last, MANIFEST.json with the sum of each.
A folder appears by one rename; two are kept, and no damage to a file of one reaches the other.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from trainer_app.core.checkpoint_name import NAME, name_of
from trainer_app.core.device import Fingerprint
from trainer_app.core.files import (
    DAMAGE,
    disk_full_named,
    fsync_tree,
    put_back,
    replace_directory,
    temporary_beside,
)
from trainer_app.core.run_state import RunState
from trainer_app.core.sums import algorithm_of, is_sum_of, quickest, sum_of
from trainer_app.core.tensors import Tensors, load_tensors, save_tensors
from trainer_app.safe_paths import open_regular

KEPT: Final = 2
MANIFEST: Final = "MANIFEST.json"
STATE: Final = "state.json"
BEST: Final = "best.safetensors"
_FIXED: Final = frozenset({"model.safetensors", "optimizer.safetensors", "rng.safetensors", STATE})
# What reading raises where the bytes are those that were written, but say something else.
_MEANINGLESS: Final = (ValueError, LookupError, TypeError, AttributeError, SafetensorError)
LARGEST_MANIFEST: Final = 1 << 20  # bytes: far more than the names of a checkpoint's files take


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The best weights as a checkpoint of this attempt has them."""

    step: int  # that reached them
    path: Path
    sum: str  # see core/sums.py


class Checkpoints:
    """The checkpoints of one run, written by one attempt at it."""

    def __init__(
        self,
        directory: Path,
        *,
        attempt: int,
        run_id: str | None = None,
        confirm: Callable[[], None] = lambda: None,
        summed_by: Callable[[], str] = quickest,
    ) -> None:
        """``run_id`` is kept in each, and those of another run are left out; None: neither.

        ``confirm`` is called before a checkpoint appears, and raises where none is to.

        ``summed_by``: which algorithm of core/sums.py whoever may have to read the next one knows.
        """
        self._directory = directory
        self._attempt = attempt
        self._run_id = run_id
        self._confirm = confirm
        self._summed_by = summed_by
        self._kept: list[tuple[Path, _Best | None]] = []  # written by this attempt, newest first

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint durably, then remove all but it and the newest two. Raises DiskFull.

        The newest are those of the latest attempt, of which there may be a later one than this.
        """
        final = self._directory / name_of(snapshot.state.step, self._attempt)
        self._kept = [kept for kept in self._kept if kept[0] != final]
        temporary = temporary_beside(final)
        try:
            with disk_full_named(final):
                temporary.mkdir(parents=True)
                sums = self._write(temporary, snapshot)
            fsync_tree(temporary)  # takes seconds: before it is asked whose the run is
            self._confirm()
            replace_directory(temporary, final)  # a stop may follow a checkpoint at its step
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        best = None
        if BEST in sums:
            best = _Best(step=snapshot.state.best_step, path=final / BEST, sum=sums[BEST])
        self._kept = [(final, best), *self._kept][:KEPT]
        for old in self._newest_first()[KEPT:]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def load_newest(self, on_message: Callable[[str], None]) -> tuple[Snapshot, Path] | None:
        """The newest whole checkpoint; None where there is none.

        Damaged ones, newer than that, are reported and removed, and so are those that cannot be
        loaded though their sums are right. Left-overs of a crash are removed, but for those of
        a later attempt: this one may have slept, and not know yet that it is over. Raises OSError,
        and removes nothing, where one cannot be read that may be whole, and TrainerError where
        nobody here can tell; and where sums are right but none can be loaded, as of another
        version, what the newest of these raises.
        """
        self._remove_what_is_no_folder(on_message)
        for old in self._left_over("old"):
            put_back(old)
        for left_over in self._left_over("tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        strange: list[tuple[Path, Exception]] = []
        for path in self._newest_first():
            try:
                found = _load(path, _verified(path), self._run_id)
            except Damaged as damage:
                _leave_out(path, str(damage), on_message)
            except _MEANINGLESS as error:
                strange.append((path, error))
            else:
                for other, why in strange:
                    what = f"it cannot be loaded: {type(why).__name__}: {why}"
                    _leave_out(other, what, on_message)
                return found, path
        if strange:
            raise strange[0][1]  # to start over would be to delete them
        return None

    def _remove_what_is_no_folder(self, on_message: Callable[[str], None]) -> None:
        """A file that somebody or a disk has put in the place of all checkpoints.

        A link stays: what it leads to may be away for now.
        """
        place = self._directory
        if place.exists() and not (place.is_dir() or place.is_symlink()):
            on_message(f"{place.name} is no folder and is removed: there are no checkpoints")
            place.unlink()

    def _write(self, directory: Path, snapshot: Snapshot) -> dict[str, str]:
        """All files; the sums that the manifest holds."""
        algorithm = self._summed_by()
        save_tensors(directory / "model.safetensors", snapshot.model)
        save_tensors(directory / "optimizer.safetensors", snapshot.optimizer)
        save_tensors(directory / "rng.safetensors", snapshot.random)
        linked = None
        if snapshot.best is not None:
            linked = self._link_best(directory, snapshot.state.best_step)
            if linked is None:
                save_tensors(directory / BEST, snapshot.best)
        state = {
            "state": asdict(snapshot.state),
            "fingerprint": asdict(snapshot.fingerprint),
            "scaler": snapshot.scaler,
            "run_id": self._run_id,
        }
        (directory / STATE).write_text(json.dumps(state, indent=2, sort_keys=True))
        sums = {}
        if linked is not None and algorithm_of(linked) == algorithm:
            sums[BEST] = linked  # it was read for it just now
        for path in sorted(directory.iterdir()):
            if path.name not in sums:
                sums[path.name] = sum_of(path, algorithm)
        (directory / MANIFEST).write_text(json.dumps(sums, indent=2, sort_keys=True))
        return sums

    def _link_best(self, directory: Path, best_step: int) -> str | None:
        """Take the best weights over from the checkpoint that is to go; their sum.

        None: they could not be. Never from the one that stays: a file of both would take both with
        it when it is damaged.
        """
        going = self._kept[KEPT - 1][1] if len(self._kept) == KEPT else None
        if going is None or going.step != best_step:
            return None
        link = directory / BEST
        try:
            os.link(going.path, link)
            whole = is_sum_of(link, going.sum)
        except OSError:  # it is gone or cannot be read, or the file system has no hard links
            whole = False
        if not whole:
            link.unlink(missing_ok=True)  # the damage is not to be taken over
            return None
        return going.sum

    def _left_over(self, kind: str) -> list[Path]:
        """What an attempt that was killed, no later one than this, was about to put in place."""
        found = [(NAME.match(path.name, 1), path) for path in self._directory.glob(f".*.{kind}")]
        return [path for match, path in found if match and int(match[2]) <= self._attempt]

    def _newest_first(self) -> list[Path]:
        """Finished checkpoints; of a later attempt before those of an earlier one."""
        if not self._directory.is_dir():
            return []
        found = [(NAME.fullmatch(path.name), path) for path in self._directory.iterdir()]
        ordered = sorted(
            ((int(match[2]), int(match[1]), path) for match, path in found if match), reverse=True
        )
        return [path for _, _, path in ordered]


def _leave_out(path: Path, why: str, on_message: Callable[[str], None]) -> None:
    on_message(f"checkpoint {path.name} is damaged and left out: {why}")
    # Away at once, for it is not to count as one of those that are kept.
    gone = path.rename(temporary_beside(path))
    shutil.rmtree(gone, ignore_errors=True)


def _verified(directory: Path) -> frozenset[str]:
    """The names of the files; raises Damaged unless they are those that were written."""
    try:
        with open_regular(directory / MANIFEST) as manifest:
            sums: dict[str, str] = json.loads(manifest.read(LARGEST_MANIFEST))
        if missing := _FIXED - sums.keys():
            raise Damaged(f"{MANIFEST} does not name {', '.join(sorted(missing))}")
        for name, known in sums.items():
            if not is_sum_of(directory / name, known):
                raise Damaged(f"{name} is not what was written")
    except OSError as error:
        if error.errno not in DAMAGE:
            raise  # too many open files, no permission: the fault is not the checkpoint's
        raise Damaged(f"{error.strerror}: {Path(error.filename or MANIFEST).name}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is not what was written: {error}") from error
    return frozenset(sums)


def _load(directory: Path, names: frozenset[str], run_id: str | None) -> Snapshot:
    """Read a checkpoint that is whole; raises Damaged where it is not the one that it should be."""
    state = json.loads((directory / STATE).read_text())
    step = state["state"]["step"]
    if not directory.name.startswith(f"step-{step:09d}-"):
        raise Damaged(f"its {STATE} is of step {step}")
    owner = state.get("run_id")  # None: written by an older version, or for nobody in particular
    if None not in (owner, run_id) and owner != run_id:
        raise Damaged(f"it is a checkpoint of run {owner}, not of {run_id}")
    # A newer version may have had more to say, an older one less.
    kept = {"loss_chain": None, "fingerprints": [state["fingerprint"]]} | state["state"]
    place, *used = (
        Fingerprint(**{one.name: ({"engine": 1} | place)[one.name] for one in fields(Fingerprint)})
        for place in (state["fingerprint"], *kept["fingerprints"])
    )
    kept["fingerprints"] = tuple(used)
    return Snapshot(
        state=RunState(
            **{one.name: kept[one.name] for one in fields(RunState) if one.name in kept}
        ),
        fingerprint=place,
        scaler=state["scaler"],
        model=load_tensors(directory / "model.safetensors"),
        optimizer=load_tensors(directory / "optimizer.safetensors"),
        random=load_tensors(directory / "rng.safetensors"),
        best=load_tensors(directory / BEST) if BEST in names else None,
    )
