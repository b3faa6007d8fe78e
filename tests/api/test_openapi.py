"""The OpenAPI document, and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from jsonschema_rs import Draft202012Validator

from backends.registry import MODEL_FAMILIES, TOKENIZER_KINDS
from trainer_app.api.errors import STATUSES

Node = dict[str, object]


@pytest.fixture
def document(client: FlaskClient) -> Node:
    """The document as it is served."""
    found: Node = client.get("/openapi.json").get_json()
    return found


def an_object(node: object) -> Node:
    assert isinstance(node, dict)
    return node


def part(node: Node, *names: str) -> Node:
    for name in names:
        node = an_object(node[name])
    return node


def parameters(node: Node) -> list[Node]:
    found = node.get("parameters", [])
    assert isinstance(found, list)
    return found


def operations(document: Node) -> Iterator[tuple[str, str, Node]]:
    for path, methods in part(document, "paths").items():
        for method, operation in an_object(methods).items():
            if method != "parameters":
                yield path, method, an_object(operation)


def schemas(node: object) -> Iterator[Node]:
    if isinstance(node, dict):
        if "schema" in node:
            yield node["schema"]
        for inner in node.values():
            yield from schemas(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from schemas(inner)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_it_is_of_version_3_1_and_knows_every_route(client: FlaskClient, document: Node) -> None:
    assert document["openapi"] == "3.1.0"
    routes = {
        re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for rule in client.application.url_map.iter_rules()
    }
    undocumented = {path for path in routes if path.startswith("/docs")} | {"/", "/openapi.json"}
    assert set(part(document, "paths")) == routes - undocumented


def test_every_schema_is_a_valid_json_schema(document: Node) -> None:
    listed = [*part(document, "components", "schemas").values(), *schemas(document)]
    for schema in listed:
        Draft202012Validator(an_object(schema) | {"components": document["components"]})


def test_every_reference_leads_somewhere(document: Node) -> None:
    for reference in references(document):
        assert part(document, *reference.removeprefix("#/").split("/"))


def test_every_operation_says_what_it_does_and_how_it_fails(document: Node) -> None:
    ids = []
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        ids.append(operation["operationId"])
        responses = part(operation, "responses")
        assert {"403", "500"} <= set(responses)
        if path not in {"/healthz", "/readyz"}:
            assert "401" in responses
            assert operation["security"]
        for response in responses.values():
            assert "X-Request-ID" in part(an_object(response), "headers")
    assert len(set(ids)) == len(ids)


def test_every_error_is_the_one_body_with_an_example_of_each_code(document: Node) -> None:
    for _, _, operation in operations(document):
        for status, response in part(operation, "responses").items():
            if status >= "400" and operation["operationId"] != "getReadiness":
                content = part(an_object(response), "content", "application/json")
                assert content["schema"] == {"$ref": "#/components/schemas/Error"}
                for code in an_object(content.get("examples", {})):
                    assert status in {str(STATUSES[code]), "400", "408", "413", "415"}


def test_every_link_names_an_operation_and_its_parameters(document: Node) -> None:
    paths = {operation["operationId"]: path for path, _, operation in operations(document)}
    linked = set()
    for _, method, operation in operations(document):
        for response in part(operation, "responses").values():
            for link in an_object(an_object(response).get("links", {})).values():
                found = an_object(link)
                needed = set(re.findall(r"{(\w+)}", paths[found["operationId"]]))
                assert set(part(found, "parameters")) == needed
                linked.add(operation["operationId"])
        if method == "post":
            assert operation["operationId"] in linked


def test_a_body_shows_bounds_defaults_and_descriptions(document: Node) -> None:
    fields = part(document, "components", "schemas", "Train", "properties")
    assert fields["max_seq_len"] == {
        "type": "integer",
        "minimum": 8,
        "maximum": 65_536,
        "default": 512,
        "description": "Tokens per sequence.",
        "example": 256,
    }
    for body in ("Train", "TokenizerTrain", "Generate", "Evaluate", "Score", "Chat"):
        schema = part(document, "components", "schemas", body)
        assert schema["additionalProperties"] is False
        for name, field in part(schema, "properties").items():
            described = an_object(field)
            assert described["description"], name
            if "integer" in str(described["type"]) or "number" in str(described["type"]):
                assert {"minimum", "maximum"} <= set(described), name


def test_choices_are_those_of_the_registry(document: Node) -> None:
    named = part(document, "components", "schemas")
    assert part(named, "Train", "properties", "model_family")["enum"] == list(MODEL_FAMILIES)
    assert part(named, "TokenizerTrain", "properties", "method")["enum"] == list(TOKENIZER_KINDS)


def test_the_page_loads_its_own_files_alone(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.mimetype == "text/html"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "<script>" not in page.text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for path in loaded:
        assert path.startswith("/docs/")
        assert client.get(path).status_code == 200


def test_the_root_leads_to_the_page(client: FlaskClient) -> None:
    response = client.get("/")
    assert (response.status_code, response.headers["Location"]) == (302, "/docs")


def test_all_posts_and_they_alone_take_an_idempotency_key(document: Node) -> None:
    taking, posts = set(), set()
    for path, method, operation in operations(document):
        taken = [*parameters(part(document, "paths", path)), *parameters(operation)]
        if any(parameter.get("name") == "Idempotency-Key" for parameter in taken):
            taking.add((method, path))
        if method == "post":
            posts.add((method, path))
    assert taking == posts
