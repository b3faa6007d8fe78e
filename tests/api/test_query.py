"""Query parameters that an address does not name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from werkzeug.routing import Rule

if TYPE_CHECKING:
    from tests.api.conftest import World

IGNORED = ("/healthz", "/readyz", "/docs", "/openapi.json", "/")


def doors(client: FlaskClient) -> list[tuple[str, str]]:
    """Method and address of every operation of the API."""
    rules = client.application.url_map.iter_rules()
    return [
        (method, address(rule))
        for rule in rules
        if rule.rule not in IGNORED and not rule.rule.startswith("/docs/")
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def address(rule: Rule) -> str:
    built = rule.build(dict.fromkeys(rule.arguments, "run-x"))
    assert built is not None
    return built[1]


def test_a_query_parameter_that_is_not_named_is_refused_at_every_door(client: FlaskClient) -> None:
    found = doors(client)
    assert len(found) >= 30
    for method, path in found:
        answer = client.open(path, method=method, query_string={"surprise": "1"}, json={})
        assert answer.status_code == 422, (method, path)
        details = answer.get_json()["details"]
        assert {"field": "surprise", "message": "unknown field"} in details, (method, path)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("tag=%ff", "tag"),
        ("limit=1&tag=a%e2%82&after=x", "tag"),
        ("user_id=%ff", "user_id"),
        ("%ff=1", "\\xff"),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_name(
    client: FlaskClient, query: str, field: str
) -> None:
    answer = client.get(f"/runs?{query}")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "INVALID_INPUT")
    assert answer.get_json()["details"] == [{"field": field, "message": "is not UTF-8"}]


def test_what_is_not_utf8_is_refused_at_every_door(client: FlaskClient) -> None:
    for method, path in doors(client):
        answer = client.open(f"{path}?tag=%ff", method=method, json={})
        assert answer.status_code == 422, (method, path)
        assert answer.get_json()["details"] == [{"field": "tag", "message": "is not UTF-8"}]


def test_what_is_utf8_is_taken(client: FlaskClient) -> None:
    assert client.get("/runs?tag=sch%C3%B6n+%E2%82%AC%25").status_code == 200


def test_one_that_is_named_elsewhere_is_refused_like_any_other(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run()
    assert client.get(f"/runs/{run_id}?").status_code == 200
    assert client.get(f"/runs/{run_id}?limit=1").status_code == 422
    assert client.delete("/corpora/none?limit=1").status_code == 422


def test_a_close_one_is_proposed(client: FlaskClient) -> None:
    (detail,) = client.get("/runs?statu=queued").get_json()["details"]
    assert detail["message"] == "unknown field; did you mean 'status'?"


@pytest.mark.parametrize("path", IGNORED[:1] + IGNORED[2:])
def test_a_page_and_a_probe_ignore_what_comes_with_the_question(
    client: FlaskClient, path: str
) -> None:
    assert client.get(f"{path}?v=1").status_code < 400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("9" * 23, f"{'9' * 23} is not within 1 to 1000"),
        ("-" + "9" * 23, f"-{'9' * 23} is not within 1 to 1000"),
        ("9" * 90, f"{'9' * 64}... is not within 1 to 1000"),
        ("9" * 5_000, "a number of more than 100 digits is not within 1 to 1000"),
        ("-" + "9" * 5_000, "a number of more than 100 digits is not within 1 to 1000"),
        ("0", "0 is not within 1 to 1000"),
        ("1.0", "'1.0' is not an integer"),
        ("%2B1", "'+1' is not an integer"),
        ("1_0", "'1_0' is not an integer"),
        ("%D9%A1", r"'\u0661' is not an integer"),
        ("", "'' is not an integer"),
        ("-", "'-' is not an integer"),
    ],
)
def test_a_number_is_told_its_range_however_long_it_is(
    client: FlaskClient, given: str, message: str
) -> None:
    answer = client.get(f"/runs?limit={given}")
    assert answer.status_code == 422
    assert answer.get_json()["details"] == [{"field": "limit", "message": message}]


def test_whether_the_address_is_there_at_all_is_said_first(client: FlaskClient) -> None:
    assert client.get("/nothing?surprise=1").status_code == 404
    assert client.put("/runs?surprise=1").status_code == 405
