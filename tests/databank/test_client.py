"""One request to a data bank that behaves, and to one that does not."""

from __future__ import annotations

import gc
import json
import logging
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from tests.databank_server import (
    Behaviour,
    DataBankServer,
    after_interim,
    body,
    cut,
    endless,
    endless_interim,
    etag,
    hang_up,
    running_data_bank,
    sha256,
    silent,
    status,
    steady_interim,
    switching,
    trickle,
    trickle_headers,
)
from trainer_app import settings
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested
from trainer_app.databank.client import DataBank, OtherBytes, RemoteFile, Upload
from trainer_app.databank.retry import TryAgain
from trainer_app.databank.wire import Timeouts
from trainer_app.errors import DataBankUnavailable, DataNotFound

# A certificate of 127.0.0.1 for these tests alone, and its key.
LOOPBACK = Path(__file__).with_name("loopback.pem")
TEXT = b"Once upon a time.\n" * 50


def upload_of(data: bytes) -> Upload:
    def stream() -> Iterator[bytes]:
        for start in range(0, len(data), 1_000):
            yield data[start : start + 1_000]

    return Upload(name="model-run-1.tar.gz", size=len(data), sha256=sha256(data), stream=stream)


def read(bank: DataBank, file_id: str, start: int = 0) -> bytes:
    with bank.open(file_id, bank.head(file_id), start=start) as part:
        return b"".join(part.blocks)


def test_a_head_tells_size_and_digest(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT)

    assert bank.head(file_id) == RemoteFile(size=len(TEXT), sha256=sha256(TEXT))


@pytest.mark.parametrize("form", ['"{}"', "{}", 'W/"{}"'])
def test_an_etag_is_understood_in_each_of_its_forms(
    server: DataBankServer, bank: DataBank, form: str
) -> None:
    server.then("HEAD", body(TEXT, ETag=form.format(sha256(TEXT).upper())))

    assert bank.head("a").sha256 == sha256(TEXT)


@pytest.mark.parametrize("tag", ['"abc"', "", '"' + "g" * 64 + '"'])
def test_a_file_without_a_digest_cannot_be_used(
    server: DataBankServer, bank: DataBank, tag: str
) -> None:
    server.then("HEAD", body(TEXT, ETag=tag))

    with pytest.raises(DataBankUnavailable, match="SHA-256"):
        bank.head("a")


def test_a_file_without_a_size_cannot_be_used(server: DataBankServer, bank: DataBank) -> None:
    server.then("HEAD", endless)

    with pytest.raises(DataBankUnavailable, match="size"):
        bank.head("a")


def test_a_file_is_read_from_its_beginning_and_from_its_middle(
    server: DataBankServer, bank: DataBank
) -> None:
    file_id = server.put(TEXT)

    assert read(bank, file_id) == TEXT
    assert read(bank, file_id, start=100) == TEXT[100:]


def test_every_request_carries_the_key_and_the_request_id(
    server: DataBankServer, bank: DataBank
) -> None:
    read(bank, server.put(TEXT))
    bank.store(upload_of(TEXT))

    assert [request.command for request in server.requests] == ["HEAD", "GET", "POST"]
    for request in server.requests:
        assert request.path.startswith("/bank/files")
        assert request.headers["X-API-Key"] == "bank-secret"
        assert request.headers["X-Request-ID"] == "req-1"


def test_without_a_key_none_is_sent(
    server: DataBankServer, bank_settings: settings.DataBank
) -> None:
    with DataBank(replace(bank_settings, api_key="")) as bank:
        bank.head(server.put(TEXT))

    assert server.requests[0].headers["X-API-Key"] is None
    assert server.requests[0].headers["X-Request-ID"] is None


@pytest.mark.parametrize("file_id", ["..", "a/b", "", "a" * 129, "a?b", "é", "a b", "a..b"])
def test_an_id_that_could_lead_elsewhere_is_not_asked_for(
    server: DataBankServer, bank: DataBank, file_id: str
) -> None:
    with pytest.raises(DataNotFound):
        bank.head(file_id)

    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(404), DataNotFound),
        (status(410), DataNotFound),
        (status(500), TryAgain),
        (status(503), TryAgain),
        (status(408), TryAgain),
        (status(429), TryAgain),
        (status(416), TryAgain),
        (status(401), DataBankUnavailable),
        (status(403), DataBankUnavailable),
        (status(400), DataBankUnavailable),
        (status(204), DataBankUnavailable),
        (hang_up, TryAgain),
        (trickle_headers, TryAgain),
        (silent, TryAgain),
        (endless_interim, TryAgain),
        (steady_interim, TryAgain),
        (switching, TryAgain),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(
    server: DataBankServer, bank: DataBank, answer: Behaviour, error: type[Exception]
) -> None:
    server.then("HEAD", answer)
    started = time.monotonic()

    with pytest.raises(error) as raised:
        bank.head("a")

    assert type(raised.value) is error
    assert time.monotonic() - started < 5


def test_interim_answers_are_passed_over(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT * 1_000)
    server.then("HEAD", after_interim)
    server.then("GET", after_interim)

    assert read(bank, file_id) == TEXT * 1_000


def test_a_refused_key_is_named_but_not_shown(server: DataBankServer, bank: DataBank) -> None:
    server.then("HEAD", status(403))

    with pytest.raises(DataBankUnavailable, match="APP__DATA_BANK_API_KEY") as refused:
        bank.head("a")

    assert "bank-secret" not in str(refused.value)


def test_a_server_that_is_not_there_may_come_back(bank_settings: settings.DataBank) -> None:
    nowhere = replace(bank_settings, url="http://127.0.0.1:1")

    with DataBank(nowhere) as bank, pytest.raises(TryAgain, match="ConnectError"):
        bank.head("a")


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("soon", None), ("٣", None)])
def test_the_pause_that_the_server_asks_for_is_known(
    server: DataBankServer, bank: DataBank, asked: str, pause: float | None
) -> None:
    def busy(request: object) -> None:
        server.requests[-1].send_response(429)
        server.requests[-1].send_header("Content-Length", "0")
        server.requests[-1].wfile.write(f"HTTP/1.1 429 Busy\r\nRetry-After: {asked}\r\n".encode())
        server.requests[-1].wfile.write(b"Content-Length: 0\r\n\r\n")

    server.then("HEAD", busy)

    with pytest.raises(TryAgain) as raised:
        bank.head("a")

    assert raised.value.pause_seconds == pause


def test_a_redirect_within_the_origin_is_followed(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT)
    server.then("HEAD", status(302, Location=f"/other/files/{file_id}"))
    server.then("POST", status(308, Location="files/"))

    assert bank.head(file_id).size == len(TEXT)
    assert bank.store(upload_of(TEXT)) == file_id
    assert server.seen("HEAD")[1].path == f"/other/files/{file_id}"
    assert server.seen("POST")[1].path == "/bank/files/"


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:9/x",
        "https://127.0.0.1/x",
        "//evil.example/x",
        "http://[",
        "",
        "/ a",
    ],
)
def test_a_redirect_to_another_host_is_refused_and_the_key_stays(
    server: DataBankServer, bank: DataBank, location: str
) -> None:
    server.always("HEAD", status(302, Location=location))

    with pytest.raises(DataBankUnavailable):
        bank.head("a")


def test_another_server_never_sees_the_key(server: DataBankServer, bank: DataBank) -> None:
    with running_data_bank() as other:
        server.always("HEAD", status(307, Location=f"{other.url}/files/a"))
        server.always("POST", status(307, Location=f"{other.url}/files"))

        with pytest.raises(DataBankUnavailable, match="another host"):
            bank.head("a")
        with pytest.raises(DataBankUnavailable, match="another host"):
            bank.store(upload_of(TEXT))

        assert other.requests == []


def test_redirects_without_end_are_not_followed(server: DataBankServer, bank: DataBank) -> None:
    server.always("HEAD", status(302, Location="/bank/files/a"))

    with pytest.raises(DataBankUnavailable, match="circle"):
        bank.head("a")

    assert len(server.requests) == 4


def test_an_upload_is_not_turned_into_a_get(server: DataBankServer, bank: DataBank) -> None:
    server.then("POST", status(303, Location="/bank/files"))

    with pytest.raises(DataBankUnavailable, match="303"):
        bank.store(upload_of(TEXT))


def test_a_file_that_is_no_longer_sent_is_closed_at_once(
    server: DataBankServer, bank: DataBank
) -> None:
    closed: list[bool] = []

    def stream() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(65_536)
        finally:
            closed.append(True)

    server.always("POST", hang_up)
    gc.disable()
    try:
        with pytest.raises(TryAgain) as raised:  # whose traceback holds what was at work
            bank.store(replace(upload_of(TEXT), size=1 << 40, stream=stream))
        assert closed == [True]
        assert raised.tb is not None
    finally:
        gc.enable()


def test_a_file_that_changed_is_not_read(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT)
    file = bank.head(file_id)
    server.then("GET", body(b"other", ETag=etag(b"other")))

    with pytest.raises(OtherBytes), bank.open(file_id, file):
        pass


def test_another_range_than_asked_for_is_not_taken(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT)
    file = bank.head(file_id)
    server.then("GET", body(TEXT[50:], 206, Content_Range=f"bytes 50-{len(TEXT) - 1}/{len(TEXT)}"))

    with pytest.raises(TryAgain) as raised, bank.open(file_id, file, start=100):
        pass

    assert raised.value.wrong


def test_a_server_that_cannot_resume_begins_again(server: DataBankServer, bank: DataBank) -> None:
    file_id = server.put(TEXT)
    file = bank.head(file_id)
    server.then("GET", body(TEXT))

    with bank.open(file_id, file, start=100) as part:
        assert part.start == 0
        assert b"".join(part.blocks) == TEXT


@pytest.mark.parametrize("answer", [cut(100), trickle, hang_up])
def test_a_body_that_does_not_arrive_may_arrive_the_next_time(
    server: DataBankServer, bank: DataBank, answer: Behaviour
) -> None:
    file_id = server.put(TEXT)
    server.then("GET", answer)

    with pytest.raises(TryAgain):
        read(bank, file_id)


def test_a_stop_ends_a_wait_at_once(bank_settings: settings.DataBank) -> None:
    asked: list[float] = []

    def should_stop() -> StopReason | None:
        if server.requests and not asked:
            asked.append(time.monotonic())
        return StopReason.CANCEL if asked else None

    with running_data_bank() as server:
        server.always("HEAD", silent)
        changed = replace(bank_settings, url=server.url)
        with DataBank(changed, should_stop=should_stop) as bank, pytest.raises(StopRequested):
            bank.head("a")
    assert time.monotonic() - asked[0] < 2


def test_what_is_stored_is_what_was_sent(server: DataBankServer, bank: DataBank) -> None:
    data = bytes(range(256)) * 1_000

    file_id = bank.store(upload_of(data))

    assert server.files[file_id] == data
    (request,) = server.requests
    assert 'name="file"; filename="model-run-1.tar.gz"' in request.disposition


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"[" * 50_000,
        b'{"size": 900, "sha256": "0"}',
        json.dumps({"file_id": "../x", "size": len(TEXT), "sha256": sha256(TEXT)}).encode(),
        json.dumps({"file_id": "a", "size": len(TEXT), "sha256": "0" * 64}).encode(),
        json.dumps({"file_id": "a", "size": 1, "sha256": sha256(TEXT)}).encode(),
        b'{"file_id": "a"}' + b" " * 70_000,
    ],
)
def test_an_answer_that_does_not_confirm_the_upload_is_none(
    server: DataBankServer, bank: DataBank, answer: bytes
) -> None:
    server.then("POST", body(answer, 201))

    with pytest.raises(TryAgain) as raised:
        bank.store(upload_of(TEXT))

    assert raised.value.wrong


@pytest.mark.parametrize(
    "wrong",
    [
        {"file_id": None},
        {"file_id": True},
        {"file_id": 12},
        {"file_id": ["a"]},
        {"size": 1.0},
        {"size": True},
        {"size": "1"},
        {"size": None},
        {"sha256": None},
        {"sha256": [sha256(b"x")]},
    ],
)
def test_an_answer_that_confirms_the_upload_in_other_types_is_none(
    server: DataBankServer, bank: DataBank, wrong: dict[str, object]
) -> None:
    stored = {"file_id": "a", "size": 1, "sha256": sha256(b"x")}
    server.then("POST", body(json.dumps(stored).encode(), 201))
    assert bank.store(upload_of(b"x")) == "a"
    server.then("POST", body(json.dumps(stored | wrong).encode(), 201))

    with pytest.raises(TryAgain) as raised:
        bank.store(upload_of(b"x"))

    assert raised.value.wrong


def test_an_endless_answer_is_left(server: DataBankServer, bank: DataBank) -> None:
    def answer(request: object) -> None:
        server.requests[-1].receive()
        endless(server.requests[-1])

    server.then("POST", answer)

    with pytest.raises(TryAgain, match="does not end"):
        bank.store(upload_of(TEXT))


def test_a_refusal_before_the_end_of_an_upload_is_heard(
    server: DataBankServer, bank: DataBank
) -> None:
    server.then("POST", status(413))

    with pytest.raises(DataBankUnavailable, match="413"):
        bank.store(upload_of(TEXT))


def test_an_upload_that_nobody_reads_is_given_up(server: DataBankServer, bank: DataBank) -> None:
    def deaf(_request: object) -> None:
        time.sleep(2)

    server.then("POST", deaf)

    with pytest.raises(TryAgain, match="WriteTimeout"):
        bank.store(upload_of(bytes(20_000_000)))


@pytest.mark.parametrize("size", [len(TEXT) - 10, len(TEXT) + 10])
def test_a_stream_of_another_size_than_announced_is_not_sent_to_its_end(
    server: DataBankServer, bank: DataBank, size: int
) -> None:
    with pytest.raises(DataBankUnavailable, match="changed"):
        bank.store(replace(upload_of(TEXT), size=size))

    assert server.files == {}


def test_an_upload_slower_than_it_may_be_is_given_up(
    server: DataBankServer, bank_settings: settings.DataBank
) -> None:
    hasty = Timeouts(window=1e-6, slowest=1e15)

    with DataBank(bank_settings, timeouts=hasty) as bank, pytest.raises(TryAgain):
        bank.store(upload_of(TEXT))


def test_a_data_bank_with_a_certificate_is_spoken_to_if_it_is_trusted(
    bank_settings: settings.DataBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(LOOPBACK)
    with running_data_bank(tls) as server:
        file_id = server.put(TEXT)
        secure = replace(bank_settings, url=server.url)
        with DataBank(secure) as stranger, pytest.raises(TryAgain):
            stranger.head(file_id)
        monkeypatch.setenv("SSL_CERT_FILE", str(LOOPBACK))
        with DataBank(secure) as bank:
            assert read(bank, file_id) == TEXT


def test_the_key_is_in_no_log(
    server: DataBankServer, bank: DataBank, caplog: pytest.LogCaptureFixture
) -> None:
    server.then("HEAD", hang_up)
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
        with pytest.raises(TryAgain):
            bank.head("a")
        read(bank, server.put(TEXT))

    assert logs
    assert "bank-secret" not in caplog.text + str(logs)
