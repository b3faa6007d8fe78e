"""Errors become one body, whoever raises them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
import structlog
from flask import abort
from flask.testing import FlaskClient
from structlog.testing import capture_logs

from trainer_app import errors
from trainer_app.api.errors import MACHINE_FAULTS, STATUSES
from trainer_app.errors import FieldError, TrainerError
from trainer_app.settings import Settings


@pytest.fixture
def raising(
    settings: Settings, make_client: Callable[[Settings], FlaskClient]
) -> Callable[[Callable[[], str]], FlaskClient]:
    """A client of an application with a view of the test's own at /raise."""

    def make(view: Callable[[], str]) -> FlaskClient:
        client = make_client(settings)
        client.application.add_url_rule("/raise", "raise", view)
        return client

    return make


def raised(error: Exception) -> Callable[[], str]:
    def view() -> str:
        raise error

    return view


ERRORS = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, TrainerError) and found is not FieldError
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_of_the_project_has_a_status(
    raising: Callable[[Callable[[], str]], FlaskClient], error: type[TrainerError]
) -> None:
    response = raising(raised(error("what happened"))).get("/raise")
    assert response.status_code == STATUSES.get(error.code, 500)
    assert response.get_json()["code"] == error.code
    assert response.get_json()["message"] == "what happened"


def test_a_field_error_names_its_field(
    raising: Callable[[Callable[[], str]], FlaskClient],
) -> None:
    response = raising(raised(FieldError("after", "is unknown"))).get("/raise")
    assert response.status_code == 422
    assert response.get_json()["details"] == [{"field": "after", "message": "is unknown"}]


def test_what_is_away_may_be_asked_again(
    raising: Callable[[Callable[[], str]], FlaskClient],
) -> None:
    response = raising(raised(errors.Unavailable("away"))).get("/raise")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0


def test_a_bug_is_logged_with_its_traceback_and_answered_without(
    raising: Callable[[Callable[[], str]], FlaskClient],
) -> None:
    structlog.contextvars.clear_contextvars()
    with capture_logs() as logs:
        response = raising(raised(RuntimeError("secret /etc/passwd"))).get("/raise")
    assert response.status_code == 500
    assert response.get_json()["code"] == "INTERNAL_ERROR"
    assert "secret" not in response.text
    assert [type(line["exc_info"]) for line in logs if "exc_info" in line] == [RuntimeError]


@pytest.mark.parametrize("number", MACHINE_FAULTS, ids=errno.errorcode.get)
def test_a_fault_of_the_machine_is_told_without_its_paths_and_logged_with_them(
    raising: Callable[[Callable[[], str]], FlaskClient], number: int
) -> None:
    structlog.contextvars.clear_contextvars()
    error = OSError(number, os.strerror(number), "/srv/secret")
    with capture_logs() as logs:
        response = raising(raised(error)).get("/raise")
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
    assert int(response.headers["Retry-After"]) > 0
    assert response.get_json()["message"] == MACHINE_FAULTS[number]
    assert [line["error"] for line in logs if "error" in line] == [str(error)]


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone", "/srv/secret"), OSError("odd")])
def test_an_error_of_files_that_is_no_fault_of_the_machine_is_a_bug(
    raising: Callable[[Callable[[], str]], FlaskClient], error: OSError
) -> None:
    response = raising(raised(error)).get("/raise")
    assert (response.status_code, response.get_json()["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in response.text


def test_a_bug_that_calls_itself_a_server_error_is_a_bug(
    raising: Callable[[Callable[[], str]], FlaskClient],
) -> None:
    response = raising(lambda: abort(502)).get("/raise")
    assert (response.status_code, response.get_json()["code"]) == (500, "INTERNAL_ERROR")


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_INPUT"), (401, "UNAUTHORIZED"), (418, "INVALID_INPUT")]
)
def test_errors_of_http_have_codes(
    raising: Callable[[Callable[[], str]], FlaskClient], status: int, code: str
) -> None:
    response = raising(lambda: abort(status)).get("/raise")
    assert (response.status_code, response.get_json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/runs", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/runs/x", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/runs/x/cancel", {"POST", "OPTIONS"}),
        ("GET", "/runs/train", {"POST", "OPTIONS"}),
        ("GET", "/tokenizers/train", {"POST", "OPTIONS"}),
        ("PUT", "/runs/train", {"POST", "OPTIONS"}),
        ("DELETE", "/tokenizers/train", {"POST", "OPTIONS"}),
        ("PATCH", "/corpora", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("TRACE", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    client: FlaskClient, method: str, path: str, allowed: set[str]
) -> None:
    response = client.open(path, method=method)
    assert (response.status_code, response.get_json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["Allow"].split(", ")) == allowed


PATHS = ["/", "/runs", "/runs/train", "/runs/x", "/tokenizers/train", "/tokenizers/x", "/corpora/x"]


@pytest.mark.parametrize("path", PATHS)
def test_options_promises_the_methods_that_an_address_takes_and_no_other(
    client: FlaskClient, path: str
) -> None:
    promised = set(client.options(path).headers["Allow"].split(", "))
    every = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    taken = {one for one in every if client.open(path, method=one).status_code != 405}
    assert promised == taken | ({"HEAD"} if "GET" in taken else set())


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT"])
def test_what_is_no_id_is_not_found_by_any_method(client: FlaskClient, method: str) -> None:
    assert client.open("/runs/a..b", method=method).status_code == 404


@pytest.mark.parametrize("path", ["/nowhere", "/runs/", "/runs//x", "/favicon.ico", "/RUNS"])
def test_an_unknown_address_is_not_found(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.get_json()["code"]) == (404, "NOT_FOUND")


BAD_IDS = [
    "..",
    "%2e%2e",
    "%252e%252e",
    "%2e%2e%2fetc",
    "..%5c",
    ".hidden",
    "-x",
    "a%00b",
    "a%0ab",
    "a..b",
    "C:",
    "x" * 129,
    "x" * 5_000,
    "%EF%BC%8E%EF%BC%8E",
    "ä",
    "a b",
]


@pytest.mark.parametrize("bad_id", BAD_IDS)
@pytest.mark.parametrize(
    "path",
    [
        "/runs/{}",
        "/runs/{}/artifact",
        "/runs/{}/logs",
        "/tokenizers/{}",
        "/corpora/{}",
        "/runs/x/generate/{}",
    ],
)
def test_what_cannot_be_an_id_is_not_found(client: FlaskClient, path: str, bad_id: str) -> None:
    response = client.get(path.format(bad_id))
    assert (response.status_code, response.get_json()["code"]) == (404, "NOT_FOUND")


def test_answers_may_not_be_kept_sniffed_or_framed(client: FlaskClient) -> None:
    headers = client.get("/runs").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
