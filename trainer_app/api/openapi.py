"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

from flask import Blueprint, Flask, Response, send_from_directory
from flask_smorest import Api

from trainer_app.api import gate, rate_limit, request_id
from trainer_app.api.errors import RETRY_AFTER_SECONDS, STATUSES
from trainer_app.api.headers import DOCS_POLICY
from trainer_app.api.ids import PATTERN, IdConverter
from trainer_app.api.schema import ErrorSchema

TITLE: Final = "Model Trainer"
VERSION: Final = version("model-trainer")  # as setup.cfg has it
_ASSETS: Final = Path(__file__).parent / "static" / "swagger-ui"
_ASSET_NAMES: Final = (
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "index.css",
    "initializer.js",
    "favicon-32x32.png",
)
_DESCRIPTION: Final = (
    "Train, evaluate and use small language models on your own machines.\n\n"
    "Every error has the same body; `code` says what happened. A POST that starts work answers "
    "202 with `Location`: follow it. Send `Idempotency-Key` to repeat any POST safely.\n\n"
    "Any address also answers 400, 414, 417 and 431, to what is no well-formed HTTP, or too long."
)
_Document = dict[str, object]


class DocumentedApi(Api):
    """flask-smorest's Api that documents our error body."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None  # every status is listed instead


def install(app: Flask) -> Api:
    """The Api to register blueprints with."""
    app.config.update(API_TITLE=TITLE, API_VERSION=VERSION, OPENAPI_VERSION="3.1.0")
    app.url_map.converters["id"] = IdConverter
    api = DocumentedApi(app, spec_kwargs={"info": {"description": _DESCRIPTION}})
    api.register_converter(
        IdConverter, lambda _: {"type": "string", "pattern": f"^{PATTERN}$", "maxLength": 128}
    )
    return api


def publish(app: Flask, api: Api) -> None:
    """Serve the finished document at /openapi.json, and the page at /docs."""
    text = json.dumps(complete(api.spec.to_dict()))
    pages = Blueprint("docs", __name__)

    @pages.get("/openapi.json")
    def document() -> Response:
        return Response(text, mimetype="application/json")

    @pages.get("/docs")
    def page() -> Response:
        return _file("index.html")

    @pages.get(f"/docs/<any({', '.join(map(repr, _ASSET_NAMES))}):name>")
    def asset(name: str) -> Response:
        return _file(name)

    app.register_blueprint(pages)


def _file(name: str) -> Response:
    response = send_from_directory(_ASSETS, name, max_age=3_600)
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response


def complete(document: _Document) -> _Document:
    """Add to the generated document what all operations share: errors, headers, the key."""
    components = _object(document, "components")
    components["securitySchemes"] = {
        "ApiKey": {
            "type": "apiKey",
            "in": "header",
            "name": gate.KEY_HEADER,
            "description": "Needed where the server is started with SECURITY__API_KEY.",
        }
    }
    components["headers"] = {
        request_id.HEADER: {
            "description": "The request's id, also in its error body and log lines.",
            "schema": {"type": "string", "pattern": f"^{request_id.PATTERN}$"},
        }
    }
    for path, operation in _operations(document):
        _complete_operation(path, operation)
    return document


def _operations(document: _Document) -> Iterator[tuple[str, _Document]]:
    for path, methods in _object(document, "paths").items():
        assert isinstance(methods, dict)
        for operation in methods.values():
            if isinstance(operation, dict):  # beside them stands the list of path parameters
                yield path, operation


def _complete_operation(path: str, operation: _Document) -> None:
    codes = operation.pop("errors", [])
    assert isinstance(codes, list)
    codes = [*codes, "FORBIDDEN", "INTERNAL_ERROR"]
    if not gate.is_open(path):
        codes += ["UNAUTHORIZED", "RATE_LIMITED"]
        # An empty requirement beside the key: a server may run without keys.
        operation["security"] = [{"ApiKey": []}, {}]
    if "parameters" in operation or "requestBody" in operation:
        codes.append("INVALID_INPUT")
    responses = _object(operation, "responses")
    if "requestBody" in operation:
        for status in ("400", "408", "413", "415"):
            responses[status] = _error(status, ["INVALID_INPUT"])
    for status in sorted({str(STATUSES[code]) for code in codes}):
        responses[status] = _error(status, [c for c in codes if str(STATUSES[c]) == status])
    links = operation.pop("links", None)
    for status, response in responses.items():
        assert isinstance(response, dict)
        headers = _object(response, "headers")
        headers[request_id.HEADER] = {"$ref": f"#/components/headers/{request_id.HEADER}"}
        if links and status.startswith("2"):
            response["links"] = links


def _error(status: str, codes: list[str]) -> _Document:
    examples = {
        code: {"value": {"code": code, "message": "...", "request_id": "5f3c9a2e"}}
        for code in sorted(codes)
    }
    headers: _Document = {}
    if status in {"429", "503"}:
        headers["Retry-After"] = {
            "description": "Seconds after which to try again.",
            "schema": {"type": "integer", "example": RETRY_AFTER_SECONDS},
        }
    if status == "429":
        headers |= rate_limit.DOCUMENTED
    return {
        "description": ", ".join(sorted(codes)),
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "examples": examples,
            }
        },
    }


def _object(parent: _Document, name: str) -> _Document:
    found = parent.setdefault(name, {})
    assert isinstance(found, dict)
    return found
