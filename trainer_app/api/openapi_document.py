"""What the operations of the OpenAPI document share: errors, headers, the key, examples."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Final

from trainer_app.api import examples, gate, openapi_examples, rate_limit, request_id
from trainer_app.api.errors import RETRY_AFTER_SECONDS, STATUSES
from trainer_app.api.rules import Rule

_INT32_MAX: Final = 2**31 - 1
_JSON: Final = "application/json"
_HEADERS: Final = "#/components/headers/"
_REQUEST_ID_HEADER: Final = {
    "description": "The request's id, also in its error body and log lines.",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{request_id.PATTERN}$"},
    "example": examples.HTTP_REQUEST_ID,
}
_REQUEST_ID_PARAMETER: Final = {
    "name": request_id.HEADER,
    "in": "header",
    "required": False,
    # Not as a pattern: what does not match it is no error.
    "description": "An id of your own for this request: 1 to 64 letters, digits, dots, "
    "underscores and hyphens. Another is made in place of anything else, or of none.",
    "schema": {"type": "string"},
    "example": examples.HTTP_REQUEST_ID,
}
_RETRY_AFTER: Final = {
    "description": "Seconds after which to try again.",
    "required": True,
    "schema": {"type": "integer"},
    "example": RETRY_AFTER_SECONDS,
}
_ALLOW: Final = {
    "description": "The methods that the address takes.",
    "required": True,
    "schema": {"type": "string"},
    "example": "GET, HEAD, OPTIONS",
}
# What a status means, before the codes that it has here.
_MEANINGS: Final[Mapping[str, str]] = {
    "204": "It is gone.",
    "400": "The body is malformed",
    "401": "The key is missing",
    "403": "The key, the host or the origin is not one that may ask",
    "404": "What is named is not there",
    "405": "The address does not take this method",
    "408": "The body comes too slowly",
    "409": "It does not fit what there is",
    "413": "The body is too large",
    "415": "The body is of another media type, or compressed",
    "422": "The request is well-formed, and not valid",
    "429": "Too many requests of one client",
    "500": "A bug; the log has the details under the request's id",
    "503": "Something that the request needs is away, or the machine fails",
}

Document = dict[str, object]


def complete(
    document: Document,
    meanings: Mapping[str, str],
    rules: Mapping[str, list[Rule]],
    *,
    keyed: bool,
) -> Document:
    """Add to the generated document what operations share, and what its schemas leave out.

    ``meanings``: what each schema is; ``rules``: what its fields must agree on.
    ``keyed``: the server asks for a key; else one may be sent, and is not looked at.
    """
    document = deepcopy(document)  # parts of it are constants of the routes' modules
    components = _object(document, "components")
    schemas = _object(components, "schemas")
    for name, schema in schemas.items():
        assert isinstance(schema, dict)
        schema["description"] = meanings[name]
        if rules.get(name):
            schema["allOf"] = rules[name]
    # A spec that was resolved lacks nothing.
    resolved = _object(schemas, "ResolvedSpec")
    resolved["required"] = sorted(_object(resolved, "properties"))
    components["securitySchemes"] = {
        "ApiKey": {
            "type": "apiKey",
            "in": "header",
            "name": gate.KEY_HEADER,
            "description": "Needed where the server is started with SECURITY__API_KEY.",
        }
    }
    components["headers"] = {request_id.HEADER: _REQUEST_ID_HEADER} | rate_limit.DOCUMENTED
    components["parameters"] = {request_id.HEADER: _REQUEST_ID_PARAMETER}
    components["responses"] = {
        "NotFound": _error("404", ["NOT_FOUND"], _shared_headers()),
        "MethodNotAllowed": _error(
            "405", ["METHOD_NOT_ALLOWED"], {"Allow": _ALLOW} | _shared_headers()
        ),
    }
    for path, item in _object(document, "paths").items():
        assert isinstance(item, dict)
        for parameter in _parameters(item):
            if parameter["in"] == "path":
                openapi_examples.describe_path_parameter(path, parameter)
        for operation in item.values():
            if isinstance(operation, dict):  # beside them stands the list of path parameters
                _complete_operation(path, operation, schemas)
                if not gate.is_open(path):
                    operation["security"] = [{"ApiKey": []}] if keyed else [{"ApiKey": []}, {}]
    return {name: _with_formats(part) for name, part in document.items()}


def _complete_operation(path: str, operation: Document, schemas: Document) -> None:
    responses = _object(operation, "responses")
    _add_errors(path, operation, responses)
    shared = _shared_headers(limited=not gate.is_open(path))
    links = operation.pop("links", None)
    for status, response in responses.items():
        assert isinstance(response, dict)
        headers = _object(response, "headers")
        headers |= shared
        if status.startswith("2"):
            _complete_success(status, response, schemas)
            if links:
                response["links"] = links
    operation["responses"] = dict(sorted(responses.items()))
    body = _json_of(operation.get("requestBody"))
    if body is not None:
        body["example"] = openapi_examples.of_body(schemas, body["schema"])
    for parameter in _parameters(operation):
        if parameter["in"] == "query":
            _without_null(_object(parameter, "schema"))
    operation["parameters"] = [
        *_parameters(operation),
        {"$ref": f"#/components/parameters/{request_id.HEADER}"},
    ]


def _add_errors(path: str, operation: Document, responses: Document) -> None:
    codes = operation.pop("errors", [])
    assert isinstance(codes, list)
    codes = [*codes, "FORBIDDEN", "INTERNAL_ERROR"]
    if not gate.is_open(path):
        # Of any of them: query parameters that it does not name.
        codes += ["UNAUTHORIZED", "RATE_LIMITED", "INVALID_INPUT"]
    if "{" in path:
        codes.append("NOT_FOUND")  # an id that no id can be
    # What is documented at the route has its own words.
    for status in responses:
        response = _object(responses, status)
        if status >= "400" and "#/components/schemas/Error" in str(response.get("content")):
            words = str(response["description"])
            headers = _object(response, "headers")
            responses[status] = _error(status, ["INVALID_INPUT"], headers, words=words)
    if "requestBody" in operation:
        for status in ("400", "408", "413", "415"):
            responses[status] = _error(status, ["INVALID_INPUT"], {})
    for status in sorted({str(STATUSES[code]) for code in codes}):
        retry: Document = {"Retry-After": _RETRY_AFTER} if status in {"429", "503"} else {}
        responses[status] = _error(status, [c for c in codes if str(STATUSES[c]) == status], retry)


def _complete_success(status: str, response: Document, schemas: Document) -> None:
    if status in _MEANINGS:
        response["description"] = _MEANINGS[status]
    content = _json_of(response)
    if content is not None:
        schema = _object(content, "schema")
        name = str(schema["$ref"]).rpartition("/")[2]
        response["description"] = _object(schemas, name)["description"]
        content["example"] = openapi_examples.of_answer(schemas, schema, pending=status == "202")


def _json_of(node: object) -> Document | None:
    """What a request or an answer has as JSON; None where it has none."""
    content = node.get("content", {}) if isinstance(node, dict) else {}
    found = content.get(_JSON)
    return found if isinstance(found, dict) else None


def _error(
    status: str, codes: list[str], headers: Document, *, words: str | None = None
) -> Document:
    return {
        "description": f"{words or _MEANINGS[status]}: {', '.join(sorted(codes))}",
        "headers": headers,
        "content": {
            _JSON: {
                "schema": {"$ref": "#/components/schemas/Error"},
                "examples": {
                    code: {"value": openapi_examples.of_error(status, code)}
                    for code in sorted(codes)
                },
            }
        },
    }


def _shared_headers(*, limited: bool = True) -> Document:
    names = [request_id.HEADER, *(rate_limit.DOCUMENTED if limited else ())]
    return {name: {"$ref": f"{_HEADERS}{name}"} for name in names}


def _without_null(schema: Document) -> None:
    """A parameter that is left out has no value; there is no null to send."""
    if schema.get("default", "") is None:
        del schema["default"]
    kinds, choices = schema.get("type"), schema.get("enum")
    if isinstance(kinds, list):
        (schema["type"],) = (kind for kind in kinds if kind != "null")
    if isinstance(choices, list):
        schema["enum"] = [choice for choice in choices if choice is not None]


def _with_formats(node: object) -> object:
    """A part of the document, its numbers with the formats that clients choose their types by."""
    if isinstance(node, list):
        return [_with_formats(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    return {name: _with_formats(inner) for name, inner in node.items()} | _format_of(node)


def _format_of(schema: Mapping[str, object]) -> dict[str, str]:
    kind = schema.get("type")
    if kind in ("number", ["number", "null"]):
        return {"format": "double"}
    highest = schema.get("maximum")
    if kind in ("integer", ["integer", "null"]) and not (
        isinstance(highest, int) and highest <= _INT32_MAX
    ):
        return {"format": "int64"}
    return {}


def _parameters(node: Document) -> list[Document]:
    found = node.get("parameters", [])
    assert isinstance(found, list)
    return found


def _object(parent: Document, name: str) -> Document:
    found = parent.setdefault(name, {})
    assert isinstance(found, dict)
    return found
