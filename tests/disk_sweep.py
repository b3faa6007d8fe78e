"""Train small runs on a disk that fails: ``python -m tests.disk_sweep TOLD FIRST STRIDE FAULT...``.

Run by tests with tests/failing_disk.c loaded before the C library, and the settings of a worker.
For each fault, runs whose disk fails at operation FIRST, FIRST + STRIDE and so on, up to one that
ends before. TOLD is a file that gets a JSON object a run.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Final

from tasks import process, training
from tasks.perform import perform
from trainer_app import artifacts
from trainer_app.core.files import sha256_file
from trainer_app.core.spec import TrainSpec
from trainer_app.core.sums import is_sum_of
from trainer_app.log import job_log_path, last_events
from trainer_app.restore import is_whole
from trainer_app.store import metrics, pauses, runs

TEXT: Final = "\n".join(f"line {number} of a text to learn from" for number in range(400)).encode()
# Of a manifest, what two runs of one spec do not have in common.
_ASIDE: Final = (
    "run_id",
    "attempts",
    "created_at",
    "completed_at",
    "training_time_seconds",
    "performance",
    "files",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How a disk fails."""

    number: int
    stays: bool  # full or broken from then on; else the one operation fails alone


FAULTS: Final[Mapping[str, Fault]] = {
    "fills": Fault(number=errno.ENOSPC, stays=True),
    "was full for a moment": Fault(number=errno.ENOSPC, stays=False),
    "breaks": Fault(number=errno.EIO, stays=True),
    "fails once": Fault(number=errno.EIO, stays=False),
}
CODES: Final[Mapping[int, str]] = {errno.ENOSPC: "DISK_FULL", errno.EIO: "INTERNAL_ERROR"}


class Disk:
    """The disk, by the functions that tests/failing_disk.c adds to this process."""

    def __init__(self, *folders: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._library.disk_asked.restype = ctypes.c_long
        for folder in folders:
            self._library.disk_watch(str(folder).encode())

    @property
    def asked(self) -> int:
        asked: int = self._library.disk_asked()
        return asked

    def fail(self, at: int, fault: Fault) -> None:
        self._library.disk_fail(ctypes.c_long(at), fault.number, int(fault.stays))

    def mend(self) -> None:
        self._library.disk_fail(ctypes.c_long(0), 0, 0)


def start() -> str:
    """A new run's id; nothing of the runs before it is left but their rows."""
    paths = process.settings().paths
    for folder in (paths.tokens, paths.runs, paths.artifacts):
        shutil.rmtree(folder, ignore_errors=True)
    spec = TrainSpec(
        model_family="char_lstm",
        model_size="tiny",
        max_seq_len=16,
        batch_size=2,
        max_steps=3,
        eval_steps=2,
        holdout_fraction=0.01,
        test_split_ratio=0.01,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
    )
    return runs.create(process.database(), spec, queue="trainer").run_id


def attempt(run_id: str) -> str:
    """Where the run stands after one attempt."""
    perform(run_id, hostname="train-0@here", work=training.work)
    return runs.get(process.database(), run_id).status


def checkpoints(run_id: str) -> list[Path]:
    """The finished ones, the newest last."""
    folder = process.settings().paths.runs / run_id / "checkpoints"
    if not folder.is_dir():
        return []
    names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(names, key=lambda path: path.name.split("-")[::-2])


def published(run_id: str) -> bool:
    """Whether the run's model is there."""
    return artifacts.model_directory(process.settings(), run_id).exists()


def torn(run_id: str) -> list[str]:
    """What is there and should not be, or not like this."""
    paths = process.settings().paths
    bad = [str(path) for root in (paths.runs, paths.artifacts) for path in root.rglob(".*.tmp")]
    for checkpoint in checkpoints(run_id):
        digests = json.loads((checkpoint / "MANIFEST.json").read_text())
        bad += [name for name in digests if not is_sum_of(checkpoint / name, digests[name])]
    model = artifacts.model_directory(process.settings(), run_id)
    if model.exists() and not is_whole(model):
        bad.append(str(model))
    named = runs.get(process.database(), run_id).checkpoint_step
    kept = checkpoints(run_id)
    if named and not model.exists() and not kept:
        bad.append(f"the checkpoint of step {named} is gone")
    return bad


def outcome(run_id: str) -> str:
    """A digest of all that two completed runs have in common."""
    model = artifacts.model_directory(process.settings(), run_id)
    manifest = artifacts.read_manifest(model)
    curve = metrics.curve(process.database(), run_id)
    points = [(one.step, one.train_loss, one.val_loss, one.chain) for one in curve]
    assert curve[-1].chain == manifest["loss_chain"]
    for file in artifacts.pointer(model).files:
        assert sha256_file(model / file.name) == file.sha256
    kept = {name: value for name, value in manifest.items() if name not in _ASIDE}
    return sha256(json.dumps([kept, points], sort_keys=True).encode()).hexdigest()


def one(disk: Disk, at: int, fault: Fault) -> dict[str, object]:
    """One run whose disk fails at this operation, and what became of it."""
    run_id = start()
    log = job_log_path(process.settings(), run_id)
    disk.fail(at, fault)
    stood, bad = ["queued"], []
    while stood[-1] == "queued":
        stood.append(attempt(run_id))
        bad += torn(run_id)
    disk_failed = disk.asked >= at
    disk.mend()
    failed = runs.get(process.database(), run_id)
    # A model whose last fsync failed is whole, and no attempt needs a checkpoint.
    needed = [] if stood[-1] == "completed" or published(run_id) else checkpoints(run_id)
    if failed.status == "failed":
        pauses.resume(process.database(), run_id)
        stood.append(attempt(run_id))
    return {
        "at": at,
        "failed": disk_failed,
        "stood": stood,
        "code": failed.error_code,
        "torn": bad,
        "needed": needed[-1].name if needed else None,
        "said": last_events(log, 100),
        "outcome": outcome(run_id) if stood[-1] == "completed" else None,
    }


def main(told: Path, first: int, stride: int, faults: Sequence[str]) -> None:
    paths = process.settings().paths
    disk = Disk(paths.runs, paths.artifacts, paths.tokens)
    lines = []
    gc.freeze()  # each run looks for garbage, and the libraries' objects are many
    for name in faults:
        for at in count(first, stride):
            run = one(disk, at, FAULTS[name])
            lines.append(json.dumps({"fault": name, **run}))
            if not run["failed"]:
                break
    told.write_text("\n".join(lines))
    process.publisher().close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
