"""The examples of the OpenAPI document, put together from those beside the schemas' fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer_app.api import examples

_REFERENCE: Final = "#/components/schemas/"
# What stands in for a text that the example of a body has already.
_ALTERNATIVES: Final = frozenset({"prompt_path", "path"})
_OF_A_PATH: Final[Mapping[str, tuple[str, str]]] = {
    "run_id": ("The run's id.", examples.RUN_ID),
    "tokenizer_id": ("The tokenizer's id.", examples.TOKENIZER_ID),
    "file_id": ("The corpus's id.", examples.CORPUS_ID),
    "session_id": ("The chat's id.", examples.SESSION_ID),
    "name": ("The file's name as the artifact lists it.", "model.safetensors"),
}
_REQUESTS: Final = {
    "generate": examples.GENERATE_ID,
    "score": examples.SCORE_ID,
    "{session_id}": examples.TURN_ID,
}
_MESSAGES: Final[Mapping[str, str]] = {
    "UNAUTHORIZED": "the header X-Api-Key is missing",
    "FORBIDDEN": "the key in X-Api-Key is not valid",
    "NOT_FOUND": "there is nothing at this address",
    "RUN_NOT_FOUND": f"{examples.RUN_ID}: there is no such run",
    "TOKENIZER_NOT_FOUND": f"{examples.TOKENIZER_ID}: there is no such tokenizer",
    "CORPUS_NOT_FOUND": "there is no such corpus file",
    "EVAL_NOT_FOUND": f"{examples.RUN_ID} has not been evaluated on its test split",
    "DATA_NOT_FOUND": f"{examples.RUN_ID} has nothing of this name",
    "METHOD_NOT_ALLOWED": "this address does not take this method",
    "CONFLICT": "what is asked for does not fit what there is",
    "NOT_READY": f"{examples.RUN_ID} is running: it has no finished model",
    "MODEL_INCOMPATIBLE": f"{examples.RUN_ID}: its manifest is damaged",
    "ALREADY_FINISHED": f"{examples.RUN_ID} has already completed",
    "CORPUS_EMPTY": "the corpus holds no text: 0 bytes",
    "CORPUS_NOT_TEXT": "the corpus is not text: NUL at byte 1024",
    "RATE_LIMITED": "more requests than 100 per 1 minute of one client; see Retry-After",
    "UNAVAILABLE": "Redis does not answer: ConnectionError",
    "INTERNAL_ERROR": "an error inside the server; its log has the details",
}
_DETAIL: Final = {"field": "colour", "message": "unknown field"}
_OF_BAD_INPUT: Final[Mapping[str, str]] = {
    "400": "the body is not JSON: Expecting value at line 1, column 1",
    "408": "the body comes too slowly",
    "412": "If-Match does not name the file that there is",
    "413": "the body must not be larger than 4259840 bytes",
    "415": "the body must be sent as Content-Type: application/json",
    "416": "the requested range cannot be provided",
    "422": f"the request is not valid: {_DETAIL['field']}: {_DETAIL['message']}",
}

Schemas = Mapping[str, object]


def of_answer(schemas: Schemas, schema: object, *, pending: bool) -> object:
    """An example of an answer; of one whose work is still ``pending``, without its results."""
    return _of(schemas, schema, pending=pending)


def of_body(schemas: Schemas, schema: object) -> object:
    """An example of a request's body: the fields whose examples go together."""
    return {
        name: field["example"]
        for name, field in _fields(_resolve(schemas, schema))
        if "example" in field and name not in _ALTERNATIVES
    }


def of_error(status: str, code: str) -> dict[str, object]:
    """An example of an error's body."""
    said = _OF_BAD_INPUT[status] if code == "INVALID_INPUT" else _MESSAGES[code]
    error = {"code": code, "message": said, "request_id": examples.HTTP_REQUEST_ID}
    return error | ({"details": [_DETAIL]} if code == "INVALID_INPUT" and status == "422" else {})


def describe_path_parameter(path: str, parameter: dict[str, object]) -> None:
    """Say of a parameter in a path what it is, and give an example."""
    name = str(parameter["name"])
    if name == "request_id":
        before = path.split("/")[-2]
        parameter |= {"description": "The request's id.", "example": _REQUESTS[before]}
    else:
        description, example = _OF_A_PATH[name]
        parameter |= {"description": description, "example": example}


def _of(schemas: Schemas, schema: object, *, pending: bool) -> object:
    found = _resolve(schemas, schema)
    kinds = found.get("type")
    if pending and isinstance(kinds, list) and "null" in kinds:
        return None
    if pending and "queued" in str(found.get("enum")):
        return "queued"
    if "example" in found:
        return found["example"]
    if kinds == "object":
        return {name: _of(schemas, field, pending=pending) for name, field in _fields(found)}
    if kinds == "array":
        return [_of(schemas, found["items"], pending=pending)]
    return found.get("default")


def _resolve(schemas: Schemas, schema: object) -> Mapping[str, object]:
    assert isinstance(schema, dict)
    if "$ref" not in schema:
        return schema
    return _resolve(schemas, schemas[str(schema["$ref"]).removeprefix(_REFERENCE)])


def _fields(schema: Mapping[str, object]) -> list[tuple[str, dict[str, object]]]:
    properties = schema.get("properties", {})
    assert isinstance(properties, dict)
    return list(properties.items())
