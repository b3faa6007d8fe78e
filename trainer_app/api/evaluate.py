"""Evaluation: ask how well a finished model predicts held-out text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer_app import artifacts
from trainer_app.api import current
from trainer_app.api.accept import KEY_PARAMETER, location_header
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.corpus_choice import chosen_corpus, sha256_of
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.api.evaluate_schema import (
    EvaluateSchema,
    EvaluationQuery,
    EvaluationQuerySchema,
    EvaluationSchema,
)
from trainer_app.api.examples import RUN_ID
from trainer_app.api.run_requests import Resolved, ask, shown
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.json_spec import ASKED_LOST
from trainer_app.errors import EvalNotFound, ModelIncompatible, RowDamaged
from trainer_app.store import requests, runs
from trainer_app.store.tables import JobKind, Status

if TYPE_CHECKING:
    from trainer_app.store.requests import Request
    from trainer_app.store.runs import Run

blueprint = Blueprint("evaluate", __name__, description="Evaluate finished models.")


@blueprint.route("/runs/<id:run_id>/evaluate", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(EvaluateSchema)
@blueprint.response(
    202, EvaluationSchema, headers=location_header(f"/runs/{RUN_ID}/eval?split=test")
)
@blueprint.doc(operationId="evaluate")
@blueprint.leads_to("getEvaluation", run_id="$request.path.run_id")
@blueprint.fails_with(
    "RUN_NOT_FOUND",
    "CORPUS_NOT_FOUND",
    "NOT_READY",
    "MODEL_INCOMPATIBLE",
    "CORPUS_EMPTY",
    "CORPUS_NOT_TEXT",
    "UNAVAILABLE",
)
def evaluate(spec: EvaluateSpec, run_id: str) -> tuple[dict[str, object], dict[str, str]]:
    """Ask for the loss of a finished model on a split of its corpus, or on another text."""

    def resolve(run: Run) -> Resolved:
        if spec.path_override is not None:
            digest = _digest(spec.path_override)
            return Resolved(spec=replace(spec, text_sha256=digest), topic=spec.split)
        _require_split(run, spec.split)
        return Resolved(spec=spec, topic=spec.split)

    found = ask(
        JobKind.EVALUATE,
        run_id,
        spec.to_json(),
        resolve,
        reads_corpus=spec.path_override is None,
    )
    return _shown(found), {"Location": f"/runs/{run_id}/eval?split={spec.split}"}


@blueprint.route("/runs/<id:run_id>/eval")
@blueprint.arguments(EvaluationQuerySchema, location="query")
@blueprint.response(200, EvaluationSchema)
@blueprint.doc(operationId="getEvaluation")
@blueprint.fails_with("RUN_NOT_FOUND", "EVAL_NOT_FOUND", "MODEL_INCOMPATIBLE", "UNAVAILABLE")
def get_evaluation(query: EvaluationQuery, run_id: str) -> dict[str, object]:
    """Tell what came of the last evaluation on a split."""
    runs.get(current.database(), run_id)
    split = query["split"]
    found = requests.latest(current.database(), JobKind.EVALUATE, run_id, split)
    if found is not None and found.status is Status.COMPLETED:
        return _shown(found)
    # Requests are forgotten after a while, what they measured is not: one that has completed
    # sooner than one before it that has failed.
    kept = _kept(run_id, split, found)
    if kept is not None:
        return kept
    if found is None:
        raise EvalNotFound(f"{run_id} has not been evaluated on its {split} split")
    return _shown(found)


def _kept(run_id: str, split: str, found: Request | None) -> dict[str, object] | None:
    """What was measured by a request that is newer than ``found``, and forgotten."""
    try:
        kept = artifacts.read_evaluation(current.settings(), run_id, split)
    except ModelIncompatible:
        if found is None:
            raise
        return None
    # The ids of requests sort by age.
    if kept is None or (found is not None and str(kept["request_id"]) <= found.request_id):
        return None
    return kept


def _digest(path: str) -> str:
    return sha256_of(chosen_corpus(None, path, path_field="path_override"))


def _require_split(run: Run, split: str) -> None:
    name = {"validation": "holdout_fraction", "test": "test_split_ratio"}[split]
    if getattr(run.spec, name) == 0:
        reason = f"{run.run_id} has no {split} split: its {name} is 0"
        raise InvalidInput([Detail("split", reason)])


def _shown(found: Request) -> dict[str, object]:
    spec = EvaluateSpec.read(found.spec)
    answer = {
        "run_id": found.run_id,
        "split": found.topic,
        "path_override": None if spec is None else spec.path_override,
        **shown(found, EvaluationSchema, "loss", "perplexity", "bits_per_byte", "artifact_path"),
    }
    if spec is None:  # no text is named, but there may have been one
        answer["error"] = answer["error"] or f"{RowDamaged.code}: {ASKED_LOST}"
    return answer
