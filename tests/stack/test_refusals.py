"""What is answered where no application could."""

from __future__ import annotations

import json

import pytest
from gunicorn.http.errors import LimitRequestLine

from trainer_app.stack.refusals import refusal


def test_what_was_sent_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, body = refusal(LimitRequestLine(5_059, 4_094)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 ")
    found = json.loads(body)
    assert found["request_id"].encode() in head
    assert "5059" not in found["message"]
    logged = capsys.readouterr().out
    assert "414" in logged
    assert "HTTPStatus" not in logged


def test_a_bug_is_one_of_ours_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    answer = refusal(RuntimeError("secret"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"INTERNAL_ERROR" in answer
    assert b"secret" not in answer
    assert "secret" in capsys.readouterr().out
