"""Uploading, listing and deleting texts."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import ON_BOTH_DATABASES
from tests.disk_faults import failing_disk
from trainer_app.api.text_scan import TextScan
from trainer_app.errors import CorpusEmpty, CorpusNotText
from trainer_app.settings import Settings
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Make = Callable[[Settings], FlaskClient]
TEXT = "Es war einmal ein König.\nUnd dann?".encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()
BOUNDARY = "----boundary"
KEY = "Idempotency-Key"


def upload(
    client: FlaskClient, data: bytes = TEXT, content_type: str = "text/plain"
) -> TestResponse:
    return client.post("/corpora", data=data, content_type=content_type)


def multipart(client: FlaskClient, data: bytes) -> TestResponse:
    return upload(client, data, f"multipart/form-data; boundary={BOUNDARY}")


def part(data: bytes, name: str = "file", filename: str | None = "a.txt") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def end() -> bytes:
    return f"--{BOUNDARY}--\r\n".encode()


def files(settings: Settings) -> list[str]:
    """What lies in the folder of uploads, the lock apart."""
    folder = settings.paths.uploads
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in found if name != ".lock"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
def test_a_raw_body_becomes_a_corpus(
    client: FlaskClient, settings: Settings, content_type: str
) -> None:
    response = upload(client, content_type=content_type)
    assert response.status_code == 201
    assert response.headers["Location"] == f"/corpora/{SHA256}"
    body = response.get_json()
    assert body.pop("created_at") > 0
    assert body == {"file_id": SHA256, "bytes": len(TEXT), "lines": 2}
    assert (settings.paths.uploads / f"{SHA256}.txt").read_bytes() == TEXT


@pytest.mark.parametrize("filename", ["a.txt", "../../etc/passwd", "", None])
def test_a_form_becomes_the_same_corpus_whatever_the_file_is_called(
    client: FlaskClient, settings: Settings, filename: str | None
) -> None:
    response = multipart(client, part(TEXT, filename=filename) + end())
    assert response.status_code == 201
    assert response.get_json()["file_id"] == SHA256
    assert files(settings) == [f"{SHA256}.txt"]


def test_what_browsers_send_is_understood(client: FlaskClient) -> None:
    response = client.post("/corpora", data={"file": (io.BytesIO(TEXT), "a.txt")})
    assert response.get_json()["file_id"] == SHA256


def test_a_large_form_arrives_byte_for_byte(client: FlaskClient, settings: Settings) -> None:
    text = b"\r\n--".join(b"line %d" % number for number in range(50_000))
    response = multipart(client, part(text) + end())
    digest = hashlib.sha256(text).hexdigest()
    assert response.get_json()["file_id"] == digest
    assert (settings.paths.uploads / f"{digest}.txt").read_bytes() == text


@ON_BOTH_DATABASES
def test_the_same_bytes_give_the_same_corpus(client: FlaskClient, settings: Settings) -> None:
    assert upload(client).get_json() == upload(client).get_json()
    assert len(client.get("/corpora").get_json()["data"]) == 1
    assert files(settings) == [f"{SHA256}.txt"]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"])
def test_a_corpus_without_text_is_refused(
    client: FlaskClient, settings: Settings, data: bytes
) -> None:
    response = upload(client, data)
    assert (response.status_code, response.get_json()["code"]) == (422, "CORPUS_EMPTY")
    assert files(settings) == []


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"fine\xff", 4),
        (b"\x00", 0),
        (b"text\x00more", 4),
        ("ä".encode() * 40_000 + b"\xfe", 80_000),
        (b"cut off \xe2\x82", 8),
        (b"\xed\xa0\x80", 0),
        (b"x" * 65_535 + b"\xe2\x82A", 65_535),
    ],
)
def test_what_is_not_text_is_refused_and_the_offset_named(
    client: FlaskClient, settings: Settings, data: bytes, offset: int
) -> None:
    response = upload(client, data)
    assert (response.status_code, response.get_json()["code"]) == (422, "CORPUS_NOT_TEXT")
    assert response.get_json()["message"].endswith(f"at byte {offset}")
    assert files(settings) == []


def test_a_character_may_lie_across_two_blocks() -> None:
    scan = TextScan()
    for byte in "König\n".encode():
        scan.update(bytes([byte]))
    text = scan.finish()
    assert (text.bytes, text.lines) == (7, 1)


def test_a_byte_order_mark_across_two_blocks_is_no_text() -> None:
    scan = TextScan()
    for byte in "\ufeff\n".encode():
        scan.update(bytes([byte]))
    with pytest.raises(CorpusEmpty):
        scan.finish()


def test_the_offset_counts_what_an_earlier_block_left_over() -> None:
    scan = TextScan()
    scan.update(b"abc\xe2")
    with pytest.raises(CorpusNotText, match=r"byte 3$"):
        scan.update(b"x")


def test_a_text_may_end_in_an_empty_block() -> None:
    scan = TextScan()
    scan.update(b"a\n")
    scan.update(b"")
    assert scan.finish().lines == 1


def test_an_empty_scan_is_an_empty_corpus() -> None:
    with pytest.raises(CorpusEmpty):
        TextScan().finish()


def small(settings: Settings, limit: int) -> Settings:
    return replace(settings, api=replace(settings.api, max_upload_bytes=limit))


@pytest.mark.parametrize("size", [10, 70_000])
def test_a_corpus_over_the_limit_is_refused(
    settings: Settings, make_client: Make, size: int
) -> None:
    client = make_client(small(settings, size - 1))
    assert upload(client, b"x" * size).status_code == 413
    assert multipart(client, part(b"x" * size) + end()).status_code == 413
    assert files(settings) == []


def test_a_corpus_of_the_limit_is_taken(settings: Settings, make_client: Make) -> None:
    client = make_client(small(settings, len(TEXT)))
    assert upload(client).status_code == 201
    assert multipart(client, part(TEXT) + end()).status_code == 201


def test_a_corpus_that_claims_too_much_is_refused_unread(
    settings: Settings, make_client: Make
) -> None:
    response = make_client(small(settings, 100)).post(
        "/corpora",
        data=b"x",
        content_type="text/plain",
        environ_overrides={"CONTENT_LENGTH": "100000"},
    )
    assert response.status_code == 413


class Unread(io.BytesIO):
    """A body that nobody may read."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("the body is read")


@pytest.mark.parametrize(
    "content_type", ["text/plain", f"multipart/form-data; boundary={BOUNDARY}"]
)
def test_a_corpus_that_the_disk_cannot_hold_is_refused_unread(
    settings: Settings, make_client: Make, content_type: str
) -> None:
    response = make_client(small(settings, 2**60)).post(
        "/corpora",
        input_stream=Unread(),
        content_type=content_type,
        environ_overrides={"CONTENT_LENGTH": str(2**59)},
    )
    assert (response.status_code, response.get_json()["code"]) == (413, "INVALID_INPUT")
    assert str(2**59) in response.get_json()["message"]
    assert files(settings) == []


@pytest.mark.parametrize(
    "fault", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES, errno.ENOMEM]
)
def test_a_disk_that_fails_during_an_upload_keeps_nothing_of_it(
    client: FlaskClient, settings: Settings, fault: int
) -> None:
    settings.paths.uploads.mkdir(parents=True)
    client.get("/corpora")  # opens the database, which is not what is tried here
    answered = 503
    for number in range(2, 30):  # the first is to make a folder that is there
        with failing_disk(number, fault) as disk:
            response = upload(client)
        if not disk.failed:
            answered = response.status_code
            break
        assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
        assert response.headers["Retry-After"]
        assert str(settings.paths.data_root) not in response.get_json()["message"]
        assert files(settings) == []
        assert client.get("/corpora").get_json()["data"] == []
    assert answered == 201


def test_uploads_that_are_no_folder_are_told_and_left(
    client: FlaskClient, settings: Settings
) -> None:
    assert upload(client).status_code == 201
    folder = settings.paths.uploads
    folder.rename(folder.with_name("aside"))
    folder.write_text("a file")
    for response in (upload(client, b"another text"), client.delete(f"/corpora/{SHA256}")):
        assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
        assert response.get_json()["message"] == "the server's folder of uploads is no folder"
    assert folder.read_text() == "a file"
    assert [one["file_id"] for one in client.get("/corpora").get_json()["data"]] == [SHA256]


def test_a_corpus_whose_folder_is_gone_can_be_deleted(
    client: FlaskClient, settings: Settings
) -> None:
    assert upload(client).status_code == 201
    settings.paths.uploads.rename(settings.paths.uploads.with_name("aside"))
    assert client.delete(f"/corpora/{SHA256}").status_code == 204
    assert client.get("/corpora").get_json()["data"] == []


@pytest.mark.parametrize("terminated", [False, True], ids=["wsgiref", "gunicorn"])
def test_an_upload_that_breaks_off_leaves_no_file(
    client: FlaskClient, settings: Settings, terminated: bool
) -> None:
    response = client.post(
        "/corpora",
        data=TEXT,
        content_type="text/plain",
        environ_overrides={
            "CONTENT_LENGTH": str(len(TEXT) + 1),
            "wsgi.input_terminated": terminated,
        },
    )
    assert response.status_code == 400
    assert files(settings) == []


def test_what_a_killed_server_of_the_version_before_left_behind_is_removed_after_a_day(
    client: FlaskClient, settings: Settings
) -> None:
    folder = settings.paths.uploads
    folder.mkdir(parents=True)
    old, new = folder / ".upload.1.tmp", folder / ".upload.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half a te")
    os.utime(old, (0, 0))
    upload(client)
    assert files(settings) == [new.name, f"{SHA256}.txt"]


class Broken(io.BytesIO):
    """The input of a connection that breaks off."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionResetError


def test_a_connection_that_breaks_leaves_no_file(client: FlaskClient, settings: Settings) -> None:
    response = client.post(
        "/corpora",
        data=TEXT,
        content_type="text/plain",
        environ_overrides={"wsgi.input": Broken(), "wsgi.input_terminated": True},
    )
    assert response.status_code == 400
    assert files(settings) == []


BAD_FORMS = {
    "cut off": part(TEXT),
    "cut off in a header": b"--" + BOUNDARY.encode() + b"\r\nContent-Dis",
    "no disposition": b"--" + BOUNDARY.encode() + b"\r\nX: y\r\n\r\ntext\r\n" + end(),
    "header not UTF-8": b"--" + BOUNDARY.encode() + b"\r\n\xff: y\r\n\r\ntext\r\n" + end(),
    "a line break alone": b"\r\n",
    "no boundary in it": b"text",
}


@pytest.mark.parametrize("data", BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_malformed_form_is_refused(client: FlaskClient, settings: Settings, data: bytes) -> None:
    assert multipart(client, data).status_code == 400
    assert files(settings) == []


LINE = b"--" + BOUNDARY.encode()
OVER = 65_537  # bytes: one more than there may be beside the file


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (LINE + b"\r\nX: " + b"y" * 300_000, "in the headers of a part"),
        (LINE + b"\r\nX: " + b"y" * OVER, "in the headers of a part"),
        (part(TEXT).replace(b"form-data", b"x" * OVER) + end(), "in the headers of a part"),
        (b"x" * 300_000 + b"\r\n" + part(TEXT) + end(), "before its first part"),
        (b"x" * OVER + b"\r\n" + part(TEXT) + end(), "before its first part"),
        (b"x" * OVER, "before its first part"),
        (part(TEXT) + end() + b"x" * 300_000, "after its last part"),
        (part(TEXT) + end() + b"x" * OVER, "after its last part"),
    ],
)
def test_what_is_too_much_beside_the_file_is_named_with_its_limit(
    client: FlaskClient, settings: Settings, data: bytes, where: str
) -> None:
    response = multipart(client, data)
    assert (response.status_code, response.get_json()["code"]) == (413, "INVALID_INPUT")
    message = f"the multipart body must not have more than 65536 bytes {where}"
    assert response.get_json()["message"] == message
    assert files(settings) == []


def test_a_form_may_have_some_text_around_its_parts(client: FlaskClient) -> None:
    around = b"x" * 60_000 + b"\r\n"
    assert multipart(client, around + part(TEXT * 5_000) + end() + around).status_code == 201


ALONE = "one 'file' alone is taken"
NAMELESS = part(TEXT).replace(b' name="file";', b"")


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        (end(), "file", "is missing"),
        (part(TEXT, name="corpus") + end(), "corpus", ALONE),
        (part(TEXT) + part(TEXT) + end(), "file", ALONE),
        (part(TEXT) + part(b"x", name="title", filename=None) + end(), "title", ALONE),
        (part(TEXT, name="\u00e4\t") + end(), r"'\xe4\t'", ALONE),
        (part(TEXT, name="") + end(), "''", ALONE),
        (NAMELESS + end(), "file", f"{ALONE}, and no part without a name"),
        (part(TEXT) + NAMELESS + end(), "file", f"{ALONE}, and no part without a name"),
    ],
)
def test_a_form_has_the_field_file_and_no_other(
    client: FlaskClient, settings: Settings, data: bytes, field: str, message: str
) -> None:
    response = multipart(client, data)
    assert response.status_code == 422
    assert response.get_json()["details"] == [{"field": field, "message": message}]
    assert files(settings) == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "text/html",
        "",
        "text/plain, application/octet-stream",
        "text/plain; charset=utf-16",
        "text/plain; charset=iso-8859-1",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=\u00e9",
        "multipart/form-data; boundary=(a+)+$",
        "multipart/mixed; boundary=B",
    ],
)
def test_a_corpus_of_another_media_type_is_refused(client: FlaskClient, content_type: str) -> None:
    assert upload(client, content_type=content_type).status_code == 415


def test_a_file_of_another_charset_in_a_form_is_refused(client: FlaskClient) -> None:
    kind = b"\r\nContent-Type: text/plain; charset="
    for charset, status in ((b"utf-16", 415), (b"utf-8", 201)):
        data = part(TEXT).replace(b"\r\n\r\n", kind + charset + b"\r\n\r\n", 1) + end()
        assert multipart(client, data).status_code == status


def with_headers(*lines: str) -> bytes:
    """A form whose file has these headers beside its name."""
    more = "".join(f"\r\n{line}" for line in lines).encode()
    return part(TEXT).replace(b"\r\n\r\n", more + b"\r\n\r\n", 1) + end()


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Encoding: gzip"],
        ["Content-Encoding: identity", "content-encoding: br"],
        ["Content-Encoding: identity, gzip"],
        ["Content-Transfer-Encoding: base64"],
        ["CONTENT-TRANSFER-ENCODING: Quoted-Printable"],
        ["Content-Transfer-Encoding: 8bit", "Content-Encoding: deflate"],
    ],
    ids=" + ".join,
)
def test_a_file_that_is_encoded_in_a_form_is_refused(
    client: FlaskClient, settings: Settings, lines: list[str]
) -> None:
    response = multipart(client, with_headers(*lines))
    assert (response.status_code, response.get_json()["code"]) == (415, "INVALID_INPUT")
    assert files(settings) == []


@pytest.mark.parametrize("encoding", ["7bit", "8BIT", "Binary"])
def test_a_file_in_a_form_may_say_that_it_is_sent_as_it_is(
    client: FlaskClient, encoding: str
) -> None:
    lines = (f"Content-Transfer-Encoding: {encoding}", "Content-Encoding: Identity")
    response = multipart(client, with_headers(*lines))
    assert (response.status_code, response.get_json()["file_id"]) == (201, SHA256)


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "us-ascii"])
def test_a_corpus_may_say_that_it_is_utf_8(client: FlaskClient, charset: str) -> None:
    answer = client.post("/corpora", data=b"text", content_type=f"TEXT/PLAIN; charset={charset}")
    assert answer.status_code == 201


def test_a_compressed_corpus_is_refused(client: FlaskClient) -> None:
    response = client.post(
        "/corpora", data=TEXT, content_type="text/plain", headers={"Content-Encoding": "gzip"}
    )
    assert response.status_code == 415


@ON_BOTH_DATABASES
def test_corpora_are_listed_newest_first_in_pages(client: FlaskClient) -> None:
    made = [upload(client, f"text {n}".encode()).get_json()["file_id"] for n in range(3)]
    first = client.get("/corpora?limit=2").get_json()
    assert [item["file_id"] for item in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    second = client.get(f"/corpora?limit=2&after={first['next']}").get_json()
    assert [item["file_id"] for item in second["data"]] == [made[0]]
    assert (second["has_more"], second["next"]) == (False, None)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=-1", "limit=1.5", "limit=", "limit=%D9%A1", "after=none"],
)
def test_a_page_that_cannot_be_is_refused(client: FlaskClient, query: str) -> None:
    assert client.get(f"/corpora?{query}").status_code == 422


def test_one_corpus_can_be_asked_for(client: FlaskClient) -> None:
    made = upload(client).get_json()
    assert client.get(f"/corpora/{made['file_id']}").get_json() == made


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_corpus_is_not_found(client: FlaskClient, method: str) -> None:
    response = client.open("/corpora/none", method=method)
    assert (response.status_code, response.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")


@ON_BOTH_DATABASES
def test_a_deleted_corpus_is_gone_with_its_file(client: FlaskClient, settings: Settings) -> None:
    upload(client)
    response = client.delete(f"/corpora/{SHA256}")
    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Type" not in response.headers
    assert client.get(f"/corpora/{SHA256}").status_code == 404
    assert files(settings) == []
    assert upload(client).status_code == 201


@ON_BOTH_DATABASES
@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_corpus_that_a_live_job_reads_stays(
    client: FlaskClient, world: World, settings: Settings, status: Status
) -> None:
    upload(client)
    world.run(status, corpus_file_id=SHA256, corpus_path=None)
    response = client.delete(f"/corpora/{SHA256}")
    assert (response.status_code, response.get_json()["code"]) == (409, "CONFLICT")
    assert files(settings) == [f"{SHA256}.txt"]


def test_a_corpus_whose_jobs_are_over_can_be_deleted(client: FlaskClient, world: World) -> None:
    upload(client)
    world.run(Status.COMPLETED, corpus_file_id=SHA256, corpus_path=None)
    assert client.delete(f"/corpora/{SHA256}").status_code == 204


def test_nothing_is_read_while_the_database_is_away(
    settings: Settings, make_client: Make, tmp_path: Path
) -> None:
    client = make_client(replace(settings, database_url=f"sqlite:///{tmp_path}"))
    response = upload(client)
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
    assert files(settings) == []


@ON_BOTH_DATABASES
def test_a_repeat_with_the_same_key_gets_the_first_answer(client: FlaskClient) -> None:
    headers = {KEY: "once"}
    first, second = (
        client.post("/corpora", data=b"text\n", content_type="text/plain", headers=headers)
        for _ in range(2)
    )
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.get_json() == second.get_json()


@ON_BOTH_DATABASES
def test_the_same_key_with_another_text_is_refused_and_leaves_no_file(
    client: FlaskClient, settings: Settings
) -> None:
    headers = {KEY: "once"}
    kept = client.post("/corpora", data=b"one\n", content_type="text/plain", headers=headers)
    refused = client.post("/corpora", data=b"two\n", content_type="text/plain", headers=headers)

    assert refused.status_code == 422
    assert refused.get_json()["details"][0]["field"] == "Idempotency-Key"
    assert [file.name for file in settings.paths.uploads.glob("*.txt")] == [
        f"{kept.get_json()['file_id']}.txt"
    ]


def test_a_key_that_was_sent_with_another_text_does_no_harm_to_one_that_is_there(
    client: FlaskClient, settings: Settings
) -> None:
    client.post("/corpora", data=b"one\n", content_type="text/plain", headers={KEY: "a"})
    client.post("/corpora", data=b"two\n", content_type="text/plain", headers={KEY: "b"})
    refused = client.post("/corpora", data=b"one\n", content_type="text/plain", headers={KEY: "b"})
    assert refused.status_code == 422
    assert len(list(settings.paths.uploads.glob("*.txt"))) == 2


def test_a_bad_key_is_refused_before_the_text_is_read(client: FlaskClient) -> None:
    response = client.post(
        "/corpora", data=b"text\n", content_type="text/plain", headers={KEY: "k" * 256}
    )
    assert response.status_code == 422
