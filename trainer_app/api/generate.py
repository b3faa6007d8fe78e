"""Generation: ask a finished model to go on with a text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer_app.api.accept import KEY_PARAMETER, location_header
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.examples import GENERATE_ID, RUN_ID
from trainer_app.api.generate_schema import GenerateSchema, GenerationSchema
from trainer_app.api.run_requests import Resolved, ask, find, shown
from trainer_app.api.texts import read_text
from trainer_app.store.tables import JobKind

if TYPE_CHECKING:
    from trainer_app.core.generation_spec import GenerateSpec
    from trainer_app.store.requests import Request
    from trainer_app.store.runs import Run

blueprint = Blueprint("generate", __name__, description="Use finished models.")


@blueprint.route("/runs/<id:run_id>/generate", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(GenerateSchema)
@blueprint.response(
    202, GenerationSchema, headers=location_header(f"/runs/{RUN_ID}/generate/{GENERATE_ID}")
)
@blueprint.doc(operationId="generate")
@blueprint.leads_to(
    "getGeneration", run_id="$request.path.run_id", request_id="$response.body#/request_id"
)
@blueprint.fails_with(
    "RUN_NOT_FOUND", "DATA_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "UNAVAILABLE"
)
def generate(
    asked: tuple[GenerateSpec, str | None], run_id: str
) -> tuple[dict[str, object], dict[str, str]]:
    """Ask a finished model to continue a prompt."""
    spec, path = asked

    def resolve(_: Run) -> Resolved:
        text = spec.prompt_text if path is None else read_text("prompt_path", path)
        return Resolved(spec=replace(spec, prompt_text=text))

    found = ask(JobKind.GENERATE, run_id, f"{spec.to_json()} {path}", resolve)
    return _shown(found), {"Location": f"/runs/{run_id}/generate/{found.request_id}"}


@blueprint.route("/runs/<id:run_id>/generate/<id:request_id>")
@blueprint.response(200, GenerationSchema)
@blueprint.doc(operationId="getGeneration")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def get_generation(run_id: str, request_id: str) -> dict[str, object]:
    """Tell what came of a request to generate."""
    return _shown(find(JobKind.GENERATE, run_id, request_id))


def _shown(found: Request) -> dict[str, object]:
    return shown(found, GenerationSchema, "outputs", "steps", "eos_terminated")
