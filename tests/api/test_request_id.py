"""The id of a request, on its answer, in its error body and in the log."""

from __future__ import annotations

import uuid

import pytest
import structlog
from flask.testing import FlaskClient
from structlog.testing import capture_logs


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 64])
def test_a_well_formed_id_is_kept(client: FlaskClient, given: str) -> None:
    response = client.get("/runs/none", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == given
    assert response.get_json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "ä", "<script>", "a\tb", "a/b"])
def test_any_other_id_is_replaced(client: FlaskClient, given: str) -> None:
    response = client.get("/healthz", environ_overrides={"HTTP_X_REQUEST_ID": given})
    assert uuid.UUID(response.headers["X-Request-ID"]).version == 4


def test_each_request_has_an_id_of_its_own(client: FlaskClient) -> None:
    first, second = (client.get("/healthz").headers["X-Request-ID"] for _ in range(2))
    assert first != second


def test_log_lines_carry_the_id(client: FlaskClient) -> None:
    client.get("/healthz", headers={"X-Request-ID": "abc"})
    assert structlog.contextvars.get_contextvars()["request_id"] == "abc"


def test_each_request_has_a_line_in_the_log_without_key_or_query(client: FlaskClient) -> None:
    with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        client.get("/runs?tag=secret", headers={"X-Api-Key": "secret"})
    (line,) = (line for line in logs if line.get("path") == "/runs")
    assert (line["method"], line["path"], line["status"]) == ("GET", "/runs", 200)
    assert line["milliseconds"] >= 0
    assert "secret" not in str(line)
