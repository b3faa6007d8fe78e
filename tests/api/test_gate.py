"""Who gets in: keys, hosts, origins, and the addresses that are open to all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from trainer_app.api.gate import check_exposure, is_loopback
from trainer_app.errors import SettingsError
from trainer_app.factory import create_app
from trainer_app.settings import Api, Security, Settings

LONG_KEY = "k" * 7_000
KEYS = ("first", LONG_KEY, "schlüssel")
DOORS = [
    ("GET", "/"),
    ("GET", "/runs"),
    ("POST", "/runs/train"),
    ("GET", "/runs/x"),
    ("POST", "/runs/x/cancel"),
    ("GET", "/runs/x/artifact"),
    ("GET", "/runs/x/artifact/y"),
    ("GET", "/runs/x/artifact.tar.gz"),
    ("GET", "/runs/x/logs"),
    ("GET", "/runs/x/logs/stream"),
    ("GET", "/runs/x/metrics"),
    ("GET", "/runs/x/metrics/stream"),
    ("POST", "/runs/x/generate"),
    ("GET", "/runs/x/generate/y"),
    ("POST", "/tokenizers/train"),
    ("GET", "/tokenizers"),
    ("GET", "/tokenizers/x"),
    ("POST", "/corpora"),
    ("GET", "/corpora"),
    ("GET", "/corpora/x"),
    ("DELETE", "/corpora/x"),
    ("GET", "/nowhere"),
    ("GET", "/healthz/"),
    ("GET", "/docsearch"),
    ("OPTIONS", "/runs"),
    ("PUT", "/runs"),
]
Make = Callable[[Settings], FlaskClient]


@pytest.fixture
def locked(settings: Settings, make_client: Make) -> FlaskClient:
    """A client of a server with three keys."""
    return make_client(replace(settings, security=Security(api_keys=KEYS, allow_open=False)))


def with_host(settings: Settings, host: str, *, allow_open: bool = True) -> Settings:
    api: Api = replace(settings.api, host=host)
    return replace(settings, api=api, security=Security(api_keys=(), allow_open=allow_open))


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_every_door_needs_a_key(locked: FlaskClient, method: str, path: str) -> None:
    response = locked.open(path, method=method)
    assert (response.status_code, response.get_json()["code"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_a_wrong_key_opens_no_door(locked: FlaskClient, method: str, path: str) -> None:
    response = locked.open(path, method=method, headers={"X-Api-Key": "second"})
    assert (response.status_code, response.get_json()["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("key", ["first", LONG_KEY])
def test_each_of_several_keys_opens(locked: FlaskClient, key: str) -> None:
    assert locked.get("/runs", headers={"X-Api-Key": key}).status_code == 200


def test_a_key_beyond_ascii_is_compared_as_bytes(locked: FlaskClient) -> None:
    sent = "schlüssel".encode().decode("latin-1")
    assert locked.get("/runs", headers={"X-Api-Key": sent}).status_code == 200


@pytest.mark.parametrize("key", ["", "firs", "first ", "FIRST", "\xff\xfe", LONG_KEY[:-1]])
def test_what_is_almost_a_key_is_not(locked: FlaskClient, key: str) -> None:
    response = locked.get("/runs", environ_overrides={"HTTP_X_API_KEY": key})
    assert response.status_code == 403


def test_a_key_in_the_address_is_not_looked_at(locked: FlaskClient) -> None:
    assert locked.get("/runs?api_key=first&X-Api-Key=first").status_code == 401


@pytest.mark.parametrize(
    "path", ["/healthz", "/docs", "/docs/swagger-ui.css", "/docs/initializer.js", "/openapi.json"]
)
def test_probes_and_documentation_are_open(locked: FlaskClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_the_ready_probe_is_open(locked: FlaskClient) -> None:
    assert locked.get("/readyz").status_code == 503


def test_a_missing_page_of_the_documentation_is_missing(locked: FlaskClient) -> None:
    assert locked.get("/docs/../runs").status_code == 404
    assert locked.get("/docs/index.html").status_code == 404


def test_without_keys_everybody_on_this_machine_gets_in(client: FlaskClient) -> None:
    assert client.get("/runs").status_code == 200


def test_without_keys_nobody_gets_in_from_another_machine_whatever_address_was_bound(
    client: FlaskClient, settings: Settings, make_client: Make
) -> None:
    outside = {"REMOTE_ADDR": "192.0.2.9"}
    for method, path in DOORS:
        answer = client.open(path, method=method, environ_overrides=outside)
        assert (answer.status_code, answer.get_json()["code"]) == (403, "FORBIDDEN")
    opened = make_client(with_host(settings, "0.0.0.0"))
    assert opened.get("/runs", environ_overrides=outside).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:8000"]
)
def test_a_loopback_server_answers_to_its_names(client: FlaskClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "[::1", "[::1]x"],
)
def test_a_loopback_server_refuses_foreign_names(client: FlaskClient, host: str) -> None:
    response = client.get("/runs", environ_overrides={"HTTP_HOST": host})
    assert (response.status_code, response.get_json()["code"]) == (403, "FORBIDDEN")


def test_a_request_without_a_host_is_refused(client: FlaskClient) -> None:
    assert client.get("/runs", environ_overrides={"HTTP_HOST": ""}).status_code == 403


def test_a_server_on_the_network_answers_to_any_name(settings: Settings, make_client: Make) -> None:
    client = make_client(with_host(settings, "0.0.0.0"))
    assert client.get("/runs", headers={"Host": "trainer.example"}).status_code == 200


def test_the_configured_host_is_a_name(settings: Settings, make_client: Make) -> None:
    client = make_client(with_host(settings, "127.0.0.5"))
    assert client.get("/runs", headers={"Host": "127.0.0.5:8000"}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://localhost.evil.example",
        "file://",
        "file://localhost:8000",
        "http://[::1",
        "",
        "localhost:8000",
        "http://localhost",
        "http://localhost:3000",  # another program's page
        "https://localhost",
        "http://localhost:8000/",
        "http://localhost:8000.evil.example",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
    ],
)
def test_a_foreign_origin_is_refused(client: FlaskClient, origin: str) -> None:
    headers = {"Origin": origin, "Host": "localhost:8000"}
    response = client.post("/runs/train", json={}, headers=headers)
    assert (response.status_code, response.get_json()["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("HTTP://LocalHost:8000", "LOCALHOST:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://localhost", "localhost"),  # of a proxy with TLS, which passes Host on
        ("https://localhost:8443", "localhost:8443"),
    ],
)
def test_a_page_of_the_server_itself_may_call_it(
    client: FlaskClient, origin: str, host: str
) -> None:
    headers = {"Origin": origin, "Host": host}
    assert client.get("/runs", headers=headers).status_code == 200


def test_on_the_network_an_origin_must_be_the_host(settings: Settings, make_client: Make) -> None:
    client = make_client(with_host(settings, "0.0.0.0"))
    host = {"Host": "trainer.example:8000"}
    same = {**host, "Origin": "http://trainer.example:8000"}
    other = {**host, "Origin": "http://localhost:8000"}
    assert client.get("/runs", headers=same).status_code == 200
    assert client.get("/runs", headers=other).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "trainer.example"])
def test_a_server_without_a_key_does_not_start_on_the_network(
    settings: Settings, host: str
) -> None:
    with pytest.raises(SettingsError, match=r"^API__HOST: .*SECURITY__API_KEY"):
        create_app(with_host(settings, host, allow_open=False))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_a_server_without_a_key_starts_on_loopback(settings: Settings, host: str) -> None:
    assert is_loopback(host)
    check_exposure(with_host(settings, host, allow_open=False))


def test_a_server_with_a_key_starts_on_the_network(settings: Settings) -> None:
    opened = with_host(settings, "0.0.0.0")
    check_exposure(replace(opened, security=Security(api_keys=("k",), allow_open=False)))
    check_exposure(opened)
