"""Generation: ask a finished model to go on with a text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer_app import artifacts
from trainer_app.api import current, request_id
from trainer_app.api.accept import (
    KEY_PARAMETER,
    LOCATION,
    idempotency_key,
    require_services,
    wake,
)
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.api.generate_schema import LONGEST_PROMPT, GenerateSchema, GenerationSchema
from trainer_app.errors import DataNotFound
from trainer_app.queue import inference_queue
from trainer_app.safe_paths import open_beneath
from trainer_app.store import idempotency, requests, runs
from trainer_app.store.tables import JobKind, Status

if TYPE_CHECKING:
    from trainer_app.core.generation_spec import GenerateSpec
    from trainer_app.store.requests import Request

blueprint = Blueprint("generate", __name__, description="Use finished models.")


@blueprint.route("/runs/<id:run_id>/generate", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(GenerateSchema)
@blueprint.response(202, GenerationSchema, headers=LOCATION)
@blueprint.doc(operationId="generate")
@blueprint.leads_to(
    "getGeneration", run_id="$request.path.run_id", request_id="$response.body#/request_id"
)
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "NOT_READY", "UNAVAILABLE")
def generate(
    asked: tuple[GenerateSpec, str | None], run_id: str
) -> tuple[dict[str, object], dict[str, str]]:
    """Ask a finished model to continue a prompt."""
    require_services()
    spec, prompt_path = asked
    key = idempotency_key(f"{spec.to_json()} {prompt_path}")
    run = runs.get(current.database(), run_id)
    earlier = idempotency.find(current.database(), key)
    if earlier is None:
        artifacts.read_manifest(artifacts.model_directory(current.settings(), run_id))
        if prompt_path is not None:
            spec = replace(spec, prompt_text=_read_prompt(prompt_path))
        created = requests.create(
            current.database(),
            JobKind.GENERATE,
            run_id,
            spec.to_json(),
            queue=inference_queue(current.settings()),
            user_id=run.user_id,
            http_request_id=request_id.current(),
            idempotency=key,
        )
        earlier = created.request_id
        wake(earlier)
    found = requests.get(current.database(), JobKind.GENERATE, run_id, earlier)
    return _shown(found), {"Location": f"/runs/{run_id}/generate/{earlier}"}


@blueprint.route("/runs/<id:run_id>/generate/<id:request_id>")
@blueprint.response(200, GenerationSchema)
@blueprint.doc(operationId="getGeneration")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def get_generation(run_id: str, request_id: str) -> dict[str, object]:
    """Tell what came of a request to generate."""
    runs.get(current.database(), run_id)
    return _shown(requests.get(current.database(), JobKind.GENERATE, run_id, request_id))


def _read_prompt(name: str) -> str:
    try:
        file = open_beneath(current.settings().paths.corpus, name)
    except FileNotFoundError:
        raise DataNotFound("prompt_path: there is no such file under the corpus root") from None
    with file:
        data = file.read(LONGEST_PROMPT + 1)
    if len(data) > LONGEST_PROMPT:
        reason = f"the file is larger than {LONGEST_PROMPT} bytes"
        raise InvalidInput([Detail("prompt_path", reason)])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        reason = f"the file is not UTF-8 text: bad byte at byte {error.start}"
        raise InvalidInput([Detail("prompt_path", reason)]) from None
    if "\0" in text:
        raise InvalidInput([Detail("prompt_path", "the file contains NUL")])
    return text


def _shown(found: Request) -> dict[str, object]:
    result: dict[str, object] = json.loads(found.result or "{}")
    failed = found.status is Status.FAILED
    return {
        "request_id": found.request_id,
        "status": found.status,
        "outputs": result.get("outputs"),
        "steps": result.get("steps"),
        "eos_terminated": result.get("eos_terminated"),
        "error": f"{found.error_code}: {found.message}" if failed else None,
    }
