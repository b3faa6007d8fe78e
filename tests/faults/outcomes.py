"""How runs of a stack end, and what of it two equal ones have in common."""

from __future__ import annotations

from tests.faults.victim import Victim
from trainer_app.replies import Run
from trainer_app.verify import check_curve

_ASIDE = (
    "run_id",
    "attempts",
    "created_at",
    "completed_at",
    "training_time_seconds",
    "performance",
    "files",  # told below, without the log
    "git_commit",  # of a checkout in which somebody may work meanwhile
)


def outcome(victim: Victim, run_id: str) -> dict[str, object]:
    """What two equal runs have in common."""
    manifest = victim.client.run_manifest(run_id)
    points = victim.client.run_metrics(run_id)["points"]
    assert check_curve(points, manifest).ok
    kept = {name: value for name, value in manifest.items() if name not in _ASIDE}
    curve = [(point["step"], point["train_loss"], point["val_loss"]) for point in points]
    files = manifest["files"]
    assert isinstance(files, dict)
    assert {"README.md", "config.json", "model.safetensors"} < files.keys()
    same = {name: entry for name, entry in files.items() if name != "logs.jsonl"}
    return kept | {"curve": curve, "files": same}


def has_completed(run: Run) -> bool:
    return run["status"] == "completed"
