"""Scoring: ask a finished model how well it predicts a text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer_app.api.accept import KEY_PARAMETER, location_header
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.api.examples import RUN_ID, SCORE_ID
from trainer_app.api.run_requests import Resolved, ask, find, shown
from trainer_app.api.score_schema import ScoreSchema, ScoringSchema
from trainer_app.api.texts import read_text
from trainer_app.store.tables import JobKind

if TYPE_CHECKING:
    from trainer_app.core.score_spec import ScoreSpec
    from trainer_app.store.requests import Request
    from trainer_app.store.runs import Run

blueprint = Blueprint("score", __name__, description="Score texts with finished models.")


@blueprint.route("/runs/<id:run_id>/score", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(ScoreSchema)
@blueprint.response(202, ScoringSchema, headers=location_header(f"/runs/{RUN_ID}/score/{SCORE_ID}"))
@blueprint.doc(operationId="score")
@blueprint.leads_to(
    "getScore", run_id="$request.path.run_id", request_id="$response.body#/request_id"
)
@blueprint.fails_with(
    "RUN_NOT_FOUND", "DATA_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "UNAVAILABLE"
)
def score(
    asked: tuple[ScoreSpec, str | None], run_id: str
) -> tuple[dict[str, object], dict[str, str]]:
    """Ask a finished model how well it predicts a text."""
    spec, path = asked

    def resolve(_: Run) -> Resolved:
        text = spec.text if path is None else read_text("path", path)
        if not text:  # the schema takes no empty text, but what a file holds it cannot know
            raise InvalidInput([Detail("path", "the file is empty")])
        return Resolved(spec=replace(spec, text=text), characters=len(text))

    found = ask(JobKind.SCORE, run_id, f"{spec.to_json()} {path}", resolve)
    return _shown(found), {"Location": f"/runs/{run_id}/score/{found.request_id}"}


@blueprint.route("/runs/<id:run_id>/score/<id:request_id>")
@blueprint.response(200, ScoringSchema)
@blueprint.doc(operationId="getScore")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def get_score(run_id: str, request_id: str) -> dict[str, object]:
    """Tell what came of a request to score."""
    return _shown(find(JobKind.SCORE, run_id, request_id))


def _shown(found: Request) -> dict[str, object]:
    return shown(found, ScoringSchema, "loss", "perplexity", "surprisal", "topk", "tokens")
