"""The OpenAPI document, and the page that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from jsonschema_rs import Draft202012Validator

from backends.registry import MODEL_FAMILIES, TOKENIZER_KINDS
from tests.api.conftest import World
from trainer_app.api.errors import STATUSES
from trainer_app.errors import RUN_CODES
from trainer_app.settings import Settings
from trainer_app.store.tables import Status

Node = dict[str, object]
# Statuses that have INVALID_INPUT for code, beside 422.
OF_HTTP_ITSELF = {"400", "408", "412", "413", "415", "416"}


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


def answers(document: Node) -> Iterator[tuple[str, str, Node]]:
    """Operation id, status and response of all that is documented."""
    for _, _, operation in operations(document):
        for status, response in part(operation, "responses").items():
            yield str(operation["operationId"]), status, an_object(response)


def media(document: Node) -> Iterator[tuple[str, str, str, Node]]:
    """Operation id, status, type and content of every answer with a body."""
    for name, status, response in answers(document):
        for kind, content in an_object(response.get("content", {})).items():
            yield name, status, kind, an_object(content)


def examples(content: Node) -> list[object]:
    several = an_object(content.get("examples", {})).values()
    return [an_object(one)["value"] for one in several] or [content["example"]]


def accepts(document: Node, schema: object, instance: object) -> bool:
    whole = an_object(schema) | {"components": document["components"]}
    return Draft202012Validator(whole).is_valid(instance)


def all_parameters(document: Node) -> Iterator[Node]:
    shared = part(document, "components", "parameters")
    for path, _, operation in operations(document):
        for one in [*parameters(part(document, "paths", path)), *parameters(operation)]:
            reference = str(one.get("$ref", ""))
            yield an_object(shared[reference.rpartition("/")[2]]) if reference else one


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
                    assert status in {str(STATUSES[code])} | OF_HTTP_ITSELF


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
        "description": "Tokens per sequence; a corpus of fewer bytes than that holds none.",
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


@pytest.mark.parametrize(
    ("body", "field"),
    [("Train", "tags"), ("Train", "sample_prompts"), ("Generate", "stop_sequences")],
)
def test_a_list_that_may_be_left_out_is_said_to_be_empty_then(
    document: Node, body: str, field: str
) -> None:
    assert part(document, "components", "schemas", body, "properties", field)["default"] == []


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


def test_a_run_fails_with_one_of_the_listed_codes(document: Node) -> None:
    code = part(document, "components", "schemas", "Run", "properties", "error_code")
    assert code["enum"] == [*RUN_CODES, None]
    for name, meaning in RUN_CODES.items():
        assert f"{name}: {meaning}" in str(code["description"])


def test_every_answer_with_a_body_has_an_example_that_its_schema_accepts(document: Node) -> None:
    for name, status, kind, content in media(document):
        if an_object(content["schema"]).get("format") == "binary":
            continue
        for example in examples(content):
            assert accepts(document, content["schema"], example), (name, status, kind)


def test_every_field_with_an_example_accepts_it(document: Node) -> None:
    for name, schema in part(document, "components", "schemas").items():
        for field, found in an_object(an_object(schema).get("properties", {})).items():
            described = an_object(found)
            if "example" in described:
                assert accepts(document, described, described["example"]), (name, field)


def test_what_is_not_done_yet_has_no_result_in_its_example(document: Node) -> None:
    shown = {(name, status): content for name, status, _, content in media(document)}
    assert examples(shown["generate", "202"])[0] == {
        "request_id": "gen-01k9v4c2r5tq8m3n6p9s1v4x7z",
        "status": "queued",
        "error": None,
        "outputs": None,
        "steps": None,
        "eos_terminated": None,
    }
    done = an_object(examples(shown["getGeneration", "200"])[0])
    assert (done["status"], done["outputs"]) == ("completed", [" there was a king."])


def test_the_examples_tell_of_one_run(document: Node) -> None:
    runs = {one["example"] for one in all_parameters(document) if one["name"] == "run_id"}
    for _, _, kind, content in media(document):
        if kind == "application/json" and "example" in content:
            runs |= set(re.findall(r"run-[0-9a-z]{26}", json.dumps(content["example"])))
    for _, _, response in answers(document):
        location = an_object(response.get("headers", {})).get("Location", {})
        runs |= set(re.findall(r"run-[0-9a-z]{26}", json.dumps(location)))
    assert len(runs) == 1


def test_the_example_of_each_location_is_where_its_first_link_leads(document: Node) -> None:
    paths = {str(operation["operationId"]): path for path, _, operation in operations(document)}
    led = 0
    for name, status, response in answers(document):
        location = an_object(response.get("headers", {})).get("Location")
        assert (location is not None) == (status in {"201", "202"}), name
        if location is not None:
            target = paths[next(iter(part(response, "links")))]
            example = str(an_object(location)["example"]).partition("?")[0]
            assert re.fullmatch(re.sub(r"{\w+}", "[^/{}]+", target), example), name
            led += 1
    assert led == 8


def test_the_example_of_each_body_is_one_that_the_server_takes(
    client: FlaskClient, world: World, document: Node
) -> None:
    world.worker()
    taken = set()
    for path, method, operation in operations(document):
        content = part(operation, "requestBody", "content") if method == "post" else {}
        for kind in {"application/json", "text/plain"} & set(content):
            described = part(content, kind)
            assert accepts(document, described["schema"], described["example"])
            raw = kind == "text/plain"
            sent = str(described["example"]) if raw else json.dumps(described["example"])
            address = re.sub(r"{\w+}", world.run(), path)
            response = client.post(address, data=sent, content_type=kind)
            # What it names is not there, or not finished.
            assert response.status_code in {200, 201, 202, 404, 409}, (path, response.text)
            taken.add(path)
    assert len(taken) == 10


def test_the_example_of_a_stream_is_one_of_its_events(document: Node) -> None:
    found = {
        name: str(content["example"])
        for name, _, kind, content in media(document)
        if kind == "text/event-stream"
    }
    assert set(found) == {"streamLogs", "streamMetrics"}
    point = part(document, "components", "schemas", "Point")
    for name, text in found.items():
        (number,), (data,) = (
            re.findall(r"^id: (\d+)$", text, re.MULTILINE),
            re.findall(r"^data: (.+)$", text, re.MULTILINE),
        )
        event = json.loads(data)
        if name == "streamMetrics":
            assert accepts(document, point, event)
            assert event["step"] == int(number)


def test_every_operation_takes_a_request_id_and_refuses_none(
    client: FlaskClient, document: Node
) -> None:
    for path, method, operation in operations(document):
        reference = {"$ref": "#/components/parameters/X-Request-ID"}
        assert reference in parameters(operation), (path, method)
    shared = part(document, "components", "parameters", "X-Request-ID")
    assert (shared["in"], shared["required"], shared["schema"]) == (
        "header",
        False,
        {"type": "string"},
    )
    kept = client.get("/healthz", headers={"X-Request-ID": str(shared["example"])})
    assert kept.headers["X-Request-ID"] == shared["example"]
    replaced = client.get("/healthz", headers={"X-Request-ID": "not one!"})
    assert replaced.status_code == 200
    assert replaced.headers["X-Request-ID"] != "not one!"


def test_a_download_sends_the_headers_that_are_documented(
    client: FlaskClient, world: World, document: Node
) -> None:
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    path = f"/runs/{run_id}/artifact/weights"
    whole = client.get(path)
    asked: dict[str, dict[str, str]] = {
        "200": {},
        "206": {"Range": "bytes=4-"},
        "304": {"If-None-Match": whole.headers["ETag"]},
        "412": {"If-Match": '"another"'},
        "416": {"Range": "bytes=10-"},
    }
    told = {
        (name, status): set(part(response, "headers"))
        for name, status, response in answers(document)
    }
    generic = {
        "Content-Type",
        "Date",
        "Content-Security-Policy",
        "Referrer-Policy",
        "X-Content-Type-Options",
    }
    limits = {name for name in told["getRun", "200"] if name.startswith("X-RateLimit")}
    for status, headers in asked.items():
        response = client.get(path, headers=headers)
        assert response.status_code == int(status)
        sent = set(response.headers.keys()) - generic
        if "Cache-Control" not in told["downloadArtifactFile", status]:
            sent -= {"Cache-Control"}  # no-store, as the description says
        if int(status) >= 400:
            sent -= {"Content-Length"}
        assert sent == told["downloadArtifactFile", status] - limits, status
    archive = client.get(f"/runs/{run_id}/artifact.tar.gz")
    sent = set(archive.headers.keys()) - generic - {"Cache-Control"}
    assert sent == told["downloadArtifact", "200"] - limits
    heeded = {one["name"] for one in all_parameters(document) if one["in"] == "header"}
    tags, dates = {"If-Match", "If-None-Match"}, {"If-Modified-Since", "If-Unmodified-Since"}
    conditions = {"Range", "If-Range", *tags, *dates}
    assert heeded == conditions | {"X-Request-ID", "Idempotency-Key", "Last-Event-ID"}
    dated = {"If-Modified-Since": whole.headers["Last-Modified"]}
    assert client.get(path, headers=dated).status_code == 304
    other = {"Range": "bytes=4-", "If-Range": '"another"'}
    assert client.get(path, headers=other).status_code == 200


def test_where_requests_are_limited_every_answer_counts_them(
    settings: Settings, make_client: Callable[[Settings], FlaskClient], document: Node
) -> None:
    names = {f"X-RateLimit-{name}" for name in ("Limit", "Remaining", "Reset")}
    paths = {operation["operationId"]: path for path, _, operation in operations(document)}
    for name, status, response in answers(document):
        expected = set() if paths[name] in {"/healthz", "/readyz"} else names
        assert names & set(part(response, "headers")) == expected, (name, status)
    client = make_client(
        replace(
            settings, security=replace(settings.security, rate_limit="6/minute", api_keys=("key",))
        )
    )
    key = {"X-Api-Key": "key"}
    given = [
        client.get("/runs"),
        client.get("/runs", headers={"X-Api-Key": "other"}),
        client.get("/runs", headers=key),
        client.get("/runs?limit=0", headers=key),
        client.get("/runs/none", headers=key),
        client.post("/runs/train", headers=key, data="{", content_type="application/json"),
        client.put("/runs", headers=key),
        client.get("/nowhere", headers=key),
        client.get("/runs", headers=key),
    ]
    statuses = [response.status_code for response in given]
    assert statuses == [401, 403, 200, 422, 404, 400, 405, 404, 429]
    assert all(names <= set(response.headers.keys()) for response in given)
    assert not names & set(client.get("/healthz").headers.keys())


def test_other_addresses_and_methods_are_answered_as_the_components_say(
    client: FlaskClient, document: Node
) -> None:
    shared = part(document, "components", "responses")
    said = str(part(document, "info")["description"])
    for name, response in (
        ("NotFound", client.get("/nowhere")),
        ("MethodNotAllowed", client.put("/runs")),
    ):
        (code,) = part(shared, name, "content", "application/json", "examples")
        assert response.get_json()["code"] == code
        assert response.status_code == STATUSES[code]
        assert f"`{name}`" in said
        assert f"`{code}`" in said
    assert "Allow" in part(shared, "MethodNotAllowed", "headers")
    assert client.put("/runs").headers["Allow"]
    assert client.head("/runs").status_code == 200
    assert client.options("/runs").headers["Allow"]


def test_an_address_with_an_id_that_no_id_can_be_is_documented(
    client: FlaskClient, document: Node
) -> None:
    assert client.get("/runs/..x").get_json()["code"] == "NOT_FOUND"
    for path, _, operation in operations(document):
        if "{" in path:
            content = part(operation, "responses", "404", "content", "application/json")
            assert "NOT_FOUND" in part(content, "examples")


def test_nothing_in_the_components_is_there_for_nobody(document: Node) -> None:
    used = set(references(document))
    for kind in ("schemas", "headers", "parameters"):
        for name in part(document, "components", kind):
            assert f"#/components/{kind}/{name}" in used


def test_everything_is_described(document: Node) -> None:
    described = {an_object(tag)["name"] for tag in tags(document) if an_object(tag)["description"]}
    for _, _, operation in operations(document):
        assert set(map(str, tag_names(operation))) <= described
    for name, _, response in answers(document):
        assert response["description"] not in {"OK", "Created", "Accepted", "No Content"}, name
        for header in part(response, "headers").values():
            assert {"$ref"} <= set(an_object(header)) or an_object(header)["description"]
    for parameter in all_parameters(document):
        assert parameter["description"], parameter["name"]
        assert "null" not in json.dumps(parameter["schema"]), parameter["name"]
    for name, schema in part(document, "components", "schemas").items():
        assert an_object(schema)["description"], name
        for field, found in an_object(an_object(schema).get("properties", {})).items():
            assert {"description", "$ref", "allOf"} & set(an_object(found)), (name, field)


def tags(document: Node) -> list[object]:
    found = document["tags"]
    assert isinstance(found, list)
    return found


def tag_names(operation: Node) -> list[object]:
    found = operation["tags"]
    assert isinstance(found, list)
    return found


def test_every_number_has_a_format_or_fits_into_32_bits(document: Node) -> None:
    seen = set()

    def look(node: object) -> None:
        if isinstance(node, dict):
            kind = str(node.get("type"))
            if "integer" in kind:
                wide = int(str(node.get("maximum", 2**63))) >= 2**31
                assert node.get("format") == ("int64" if wide else None)
                seen.add(wide)
            elif "number" in kind:
                assert node["format"] == "double"
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(document)
    assert seen == {True, False}


def test_the_whole_spec_of_a_run_is_always_there(
    client: FlaskClient, world: World, document: Node
) -> None:
    spec = part(document, "components", "schemas", "ResolvedSpec")
    assert spec["required"] == sorted(part(spec, "properties"))
    shown = client.get(f"/runs/{world.run()}").get_json()
    assert accepts(document, {"$ref": "#/components/schemas/Run"}, shown)
