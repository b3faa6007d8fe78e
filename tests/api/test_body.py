"""What the gate in front of JSON bodies lets through."""

from __future__ import annotations

import io
import json

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from trainer_app.api.body import MAX_DEPTH, decode
from trainer_app.settings import Settings

BAD_REQUESTS = {
    "not JSON": b"{",
    "empty": b"",
    "duplicate keys": b'{"seed": 1, "seed": 2}',
    "duplicate keys inside": b'{"tags": [{"a": 1, "a": 1}]}',
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "invalid UTF-8": b'{"tags": ["\xff"]}',
    "UTF-16": '{"seed": 1}'.encode("utf-16"),
    "a comment": b'{"seed": 1} // one',
    "an unpaired quote": b'{"seed: 1}',
}
UNPROCESSABLE = {
    "an array": b"[]",
    "null": b"null",
    "a string": b'"seed"',
    "a number": b"1",
    "an unknown field": b'{"sed": 1}',
    "a lone surrogate": b'{"tags": ["\\ud800"]}',
    "a lone surrogate as a key": b'{"\\ud800": 1}',
    "NUL": b'{"corpus_path": "a\\u0000b"}',
    "NaN": b'{"learning_rate": NaN}',
    "Infinity": b'{"learning_rate": Infinity}',
    "-Infinity": b'{"learning_rate": -Infinity}',
    "1e400": b'{"learning_rate": 1e400}',
    "true as an integer": b'{"seed": true}',
    "1.9 as an integer": b'{"seed": 1.9}',
    "1.0 as an integer": b'{"seed": 1.0}',
    "a text as an integer": b'{"seed": "12"}',
    "1_000": b'{"seed": "1_000"}',
    "Arabic digits": '{"seed": "١٢"}'.encode(),
    "a negative seed": b'{"seed": -1}',
    "a seed of 33 bits": b'{"seed": 4294967296}',
    "an integer of 70 bits": b'{"user_id": 1180591620717411303424}',
    "an integer of 5,000 digits": b'{"seed": ' + b"9" * 5_000 + b"}",
    "a negative integer of 5,000 digits": b'{"seed": -' + b"9" * 5_000 + b"}",
    "an integer of 5,000 digits for a number": b'{"learning_rate": ' + b"9" * 5_000 + b"}",
    "true as a number": b'{"learning_rate": true}',
    "a text as a number": b'{"learning_rate": "0.1"}',
    "1 as a boolean": b'{"freeze_embed": 1}',
    "a text as a boolean": b'{"freeze_embed": "true"}',
    "zero epochs": b'{"num_epochs": 0}',
    "a negative batch": b'{"batch_size": -4}',
    "a sequence of 7": b'{"max_seq_len": 7}',
    "a negative learning rate": b'{"learning_rate": -0.1}',
    "null where a value is needed": b'{"seed": null}',
    "an object as text": b'{"device": {}}',
    "an array as text": b'{"device": ["cpu"]}',
    "a text as a list": b'{"tags": "one"}',
    "an unknown word": b'{"device": "tpu"}',
    "17 tags": json.dumps({"tags": ["x"] * 17}).encode(),
    "a million unknown keys": json.dumps({f"k{i}": 1 for i in range(50_000)}).encode(),
}


def send(client: FlaskClient, data: bytes, **headers: str) -> TestResponse:
    return client.post(
        "/runs/train", data=data, content_type="application/json", headers=list(headers.items())
    )


@pytest.mark.parametrize("data", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_malformed_body_is_a_bad_request(client: FlaskClient, data: bytes) -> None:
    response = send(client, data)
    assert response.status_code == 400
    assert response.get_json()["code"] == "INVALID_INPUT"


@pytest.mark.parametrize("data", UNPROCESSABLE.values(), ids=UNPROCESSABLE)
def test_a_well_formed_body_of_bad_values_is_refused_and_starts_nothing(
    client: FlaskClient, data: bytes
) -> None:
    response = send(client, data)
    assert response.status_code == 422
    assert response.get_json()["code"] == "INVALID_INPUT"
    assert client.get("/runs").get_json()["data"] == []


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", None, "", "application/x-www-form-urlencoded", "multipart/form-data", "json"],
)
def test_a_body_of_another_media_type_is_refused(
    client: FlaskClient, content_type: str | None
) -> None:
    response = client.post("/runs/train", data=b"{}", content_type=content_type)
    assert response.status_code == 415


def test_a_bare_post_starts_nothing(client: FlaskClient) -> None:
    assert client.post("/runs/train").status_code == 415


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP"])
def test_a_compressed_body_is_refused(client: FlaskClient, encoding: str) -> None:
    assert send(client, b"{}", **{"Content-Encoding": encoding}).status_code == 415


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "\x00"])
def test_another_charset_is_refused(
    client: FlaskClient, body: dict[str, object], charset: str
) -> None:
    response = client.post(
        "/runs/train",
        data=json.dumps(body),
        content_type=f'application/json; charset="{charset}"',
    )
    assert response.status_code == 415


def test_a_charset_beside_the_media_type_is_fine(
    client: FlaskClient, body: dict[str, object]
) -> None:
    response = client.post(
        "/runs/train", data=json.dumps(body), content_type="application/json; charset=utf-8"
    )
    assert response.status_code == 202


def test_a_body_that_claims_100_megabytes_is_refused_unread(client: FlaskClient) -> None:
    response = client.post(
        "/runs/train",
        data=b"{}",
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": "100000000"},
    )
    assert response.status_code == 413
    assert response.get_json()["code"] == "INVALID_INPUT"


def test_a_body_over_the_limit_is_refused_when_it_does_not_say_its_length(
    client: FlaskClient, settings: Settings
) -> None:
    response = client.post(
        "/runs/train",
        input_stream=io.BytesIO(b" " * (settings.api.max_body_bytes + 1)),
        content_type="application/json",
        environ_overrides={
            "CONTENT_LENGTH": "",
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input_terminated": True,
        },
    )
    assert response.status_code == 413


def test_a_body_that_breaks_off_is_refused_even_where_it_is_whole_json(
    client: FlaskClient, body: dict[str, object]
) -> None:
    response = client.post(
        "/runs/train",
        data=json.dumps(body),
        content_type="application/json",
        environ_overrides={
            "CONTENT_LENGTH": str(len(json.dumps(body)) + 1),
            "wsgi.input_terminated": True,
        },
    )
    assert response.status_code == 400


def test_two_lengths_are_refused(client: FlaskClient) -> None:
    response = send(client, b"{}", **{"Transfer-Encoding": "chunked"})
    assert response.status_code == 400


def test_an_unknown_field_is_answered_with_the_one_that_was_meant(client: FlaskClient) -> None:
    details = send(client, b'{"batchsize": 4, "corpus_path": "x"}').get_json()["details"]
    assert {
        "field": "batchsize",
        "message": "unknown field; did you mean 'batch_size'?",
    } in details


def test_a_message_names_field_value_and_range(client: FlaskClient) -> None:
    details = send(client, b'{"max_seq_len": 7}').get_json()["details"]
    assert {"field": "max_seq_len", "message": "7 is not within 8 to 65536"} in details


def test_an_item_of_a_list_is_named_by_its_position(client: FlaskClient) -> None:
    details = send(client, b'{"tags": ["fine", 1]}').get_json()["details"]
    assert {"field": "tags.1", "message": "1 is not a string"} in details


def test_a_long_list_of_mistakes_is_answered_briefly(client: FlaskClient) -> None:
    response = send(client, UNPROCESSABLE["a million unknown keys"])
    assert len(response.get_json()["details"]) == 20


def test_a_strange_key_is_repeated_in_a_printable_form(client: FlaskClient) -> None:
    fields = [
        detail["field"]
        for detail in send(
            client, b'{"a\\nb": 1, "\\ud800": 1, "x' + b"x" * 99 + b'": 1}'
        ).get_json()["details"]
    ]
    assert r"'a\nb'" in fields
    assert r"'\ud800'" in fields
    assert all(len(field) < 80 for field in fields)


def test_brackets_inside_strings_are_not_depth() -> None:
    text = "[{" * 100
    assert decode(json.dumps([text, {}]).encode()) == [text, {}]


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert decode(b"[" + b"{}," * 100 + b"{}]") == [{}] * 101


def test_a_body_that_the_server_loses_patience_with_is_refused_as_too_slow(
    client: FlaskClient,
) -> None:
    class Slow(io.RawIOBase):
        def readinto(self, _buffer: object) -> int:
            raise TimeoutError

    for path, content_type in (("/runs/train", "application/json"), ("/corpora", "text/plain")):
        answer = client.post(
            path,
            content_type=content_type,
            environ_overrides={
                "CONTENT_LENGTH": "10",
                "wsgi.input": Slow(),
                "wsgi.input_terminated": True,  # as gunicorn says
            },
        )
        assert (answer.status_code, answer.get_json()["code"]) == (408, "INVALID_INPUT")
        assert "too slowly" in answer.get_json()["message"]
