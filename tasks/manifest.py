"""What a finished artifact says of itself: manifest, metrics and model card."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from tasks.figures import FIGURES
from trainer_app.core.perplexity import perplexity
from trainer_app.core.run_files import Finished
from trainer_app.core.spec import TokenizerSpec
from trainer_app.core.tokenizer_training import TokenizerReport
from trainer_app.settings import load_settings

_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a job was posted and when it ended, in unix seconds, and how many attempts it took."""

    created_at: float
    completed_at: float
    attempts: int


def model_manifest(run_id: str, finished: Finished, times: Times) -> dict[str, object]:
    """All that it takes to make the run again, and what came of it.

    ``spec`` has what was asked for, and in place of what was left to the worker its choice.
    ``batch_size`` and ``gradient_accumulation_steps`` are what was trained with, of a short corpus
    less than what the spec asks for. Runs of the same spec on the same device, libraries and
    threads differ in ``run_id`` and in what ``Times`` and the clock give alone.
    """
    spec = finished.spec
    return {
        "run_id": run_id,
        "model_family": spec.model_family,
        "model_size": spec.model_size,
        "tokenizer_id": spec.tokenizer_id,
        "epochs": finished.epochs,
        "batch_size": finished.batch_size,
        "gradient_accumulation_steps": finished.accumulation,
        "learning_rate": spec.peak_learning_rate,
        "max_seq_len": spec.max_seq_len,
        "seed": spec.seed,
        "device": finished.device,
        "precision": finished.precision,
        "training_time_seconds": finished.training_seconds,
        "created_at": _iso(times.created_at),
        "completed_at": _iso(times.completed_at),
        "attempts": times.attempts,
        "spec": json.loads(spec.to_json()),
        "sha256": {
            "corpus": spec.corpus_sha256,
            "tokenizer": finished.tokenizer_sha256,
            "weights": finished.weights_sha256,
        },
        "loss_chain": finished.loss_chain,
        "versions": finished.versions,
        "system": {"device_name": finished.device_name, "threads": finished.threads},
        "git_commit": git_commit(),
        "execution": asdict(finished.execution),
        "performance": asdict(finished.performance) if finished.performance else None,
        **_places(finished),
        **figures(finished),
    }


def _places(finished: Finished) -> dict[str, object]:
    """Where the run was trained, if it was in more than one place; else it has the one's bytes."""
    if len(finished.fingerprints) < 2:
        return {}
    return {"fingerprints": [asdict(place) for place in finished.fingerprints]}


def figures(finished: Finished) -> dict[str, object]:
    """What was measured: losses in nats per token."""
    return {name: getattr(finished, name) for name in FIGURES}


def tokenizer_manifest(
    tokenizer_id: str, spec: TokenizerSpec, report: TokenizerReport, times: Times
) -> dict[str, object]:
    """What a tokenizer was trained from and what it measures on held-out text."""
    return {
        "tokenizer_id": tokenizer_id,
        "method": spec.method,
        "spec": json.loads(spec.to_json()),
        "statistics": json.loads(report.to_json()),
        "created_at": _iso(times.created_at),
        "completed_at": _iso(times.completed_at),
        "attempts": times.attempts,
        "git_commit": git_commit(),
    }


def model_card(finished: Finished) -> str:
    """The README.md of a model, in the form that model hubs read; the same for equal runs."""
    spec = finished.spec
    library = "transformers" if finished.loads_in_transformers else "model-trainer"
    loader = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")'
        if finished.loads_in_transformers
        else "from pathlib import Path\n\n"
        "from trainer_app.core.loaded import load_model\n\n"
        'loaded = load_model(Path("."), device="cpu")'
    )
    sequences = finished.batch_size * finished.accumulation
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value} |"
        for name, value in figures(finished).items()
        if value is not None
    )
    return f"""---
library_name: {library}
pipeline_tag: text-generation
tags: [{spec.model_family}, model-trainer]
---

# {spec.model_family} {spec.model_size}

A language model trained on the corpus with sha256
`{spec.corpus_sha256}` for {finished.steps} steps of {sequences} sequences of
{spec.max_seq_len} tokens. `manifest.json` holds all that it takes to train it again.

| figure | value |
|---|---|
{rows}

Losses are means in nats per predicted token.

## Use

```python
{loader}
```
"""


def metrics_file(finished: Finished) -> str:
    """eval/metrics.json: the final figures, with the perplexity of the best validation loss."""
    values = figures(finished)
    if finished.best_val_loss is not None:
        values["best_val_perplexity"] = perplexity(finished.best_val_loss)
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"


@cache
def git_commit(root: Path = _ROOT) -> str | None:
    """The commit of the code that runs: of its checkout, or as an image was told at its build."""
    if not (root / ".git").exists():
        return load_settings().git_commit or None
    try:
        answer = subprocess.run(  # noqa: S603 - a fixed command
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here, or it hangs: a finished run is not to fail for it
    return answer.stdout.strip() or None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
