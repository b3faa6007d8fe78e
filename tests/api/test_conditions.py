"""What a download's conditions and range get, at the address of a model's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

DATA = b"0123456789"


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model of one file beside its manifest."""
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    return run_id


def test_a_range_of_a_file_is_downloaded(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=4-"})
    assert (response.status_code, response.data) == (206, b"456789")
    assert response.headers["Content-Range"] == "bytes 4-9/10"


def test_a_range_behind_the_end_is_refused(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=10-"})
    assert (response.status_code, response.get_json()["code"]) == (416, "INVALID_INPUT")
    assert response.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize(
    ("given", "status", "part"),
    [
        ("bytes=0-0", 206, b"0"),
        ("BYTES=0-1", 206, b"01"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-2", 206, b"89"),
        ("bytes=-11", 206, DATA),  # the last eleven of ten
        ("bytes=-99999999999999999999999", 206, DATA),
        ("bytes=99999999999999999999999-", 416, None),
        ("bytes=5-2", 200, DATA),  # what ends before it begins is no range
        ("bytes=12-11", 200, DATA),
        ("bytes=-0", 416, None),
        ("bytes=0-0,2-2", 200, DATA),
        ("bytes=" + ",".join(["0-"] * 1_000), 200, DATA),
        ("bytes=a-b", 200, DATA),
        ("bytes=", 200, DATA),
        ("bytes=-", 200, DATA),
        ("bytes=--5", 200, DATA),
        ("bytes=0x0-0x5", 200, DATA),
        ("bytes=1_0-2_0", 200, DATA),
        ("bytes=\u00b2-\u00b3", 200, DATA),
        ("bytes=" + "9" * 5_000 + "-", 200, DATA),
        ("lines=1-2", 200, DATA),
    ],
)
def test_a_range_means_what_http_says_or_is_ignored(
    client: FlaskClient, run_id: str, given: str, status: int, part: bytes | None
) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": given})
    assert response.status_code == status
    if part is not None:
        assert response.data == part
    else:
        assert response.headers["Content-Range"] == "bytes */10"


def test_a_file_that_is_not_the_one_that_the_client_means_is_not_sent(
    client: FlaskClient, run_id: str
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    etag = client.get(path).headers["ETag"]
    refused = client.get(path, headers={"If-Match": '"another"'})
    assert (refused.status_code, refused.get_json()["code"]) == (412, "INVALID_INPUT")
    for met in (etag, "*"):
        assert client.get(path, headers={"If-Match": met}).data == DATA
    resumed = {"Range": "bytes=5-", "If-Range": '"another"'}
    assert client.get(path, headers=resumed).data == DATA


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui.css", "/runs/{}/artifact/weights"])
@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 0000 23:59:59 +9999",
        "9" * 5_000,
        "Fri, 99 Jan 99999999999 00:00:00 GMT",
        "Fri, 01 Jan 99999999999 00:00:00 GMT",
        "Fri, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Fri, 01 Jan 2020 99999999999999999999:00:00 GMT",
    ],
)
def test_a_date_that_is_none_is_ignored(
    client: FlaskClient, run_id: str, path: str, date: str
) -> None:
    plain = client.get(path.format(run_id))
    assert plain.status_code == 200
    for name in ("If-Modified-Since", "If-Unmodified-Since", "If-Range"):
        given = {name: date} | ({"Range": "bytes=0-1"} if name == "If-Range" else {})
        response = client.get(path.format(run_id), headers=given)
        assert (response.status_code, response.data) == (200, plain.data)


EARLIER = "Thu, 01 Jan 1970 00:00:07 GMT"
LATER = "Thu, 01 Jan 2099 00:00:00 GMT"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"If-None-Match": "{etag}"}, 304),
        ({"If-None-Match": "W/{etag}"}, 304),
        ({"If-None-Match": '"another", {etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"another"', "If-Modified-Since": LATER}, 200),
        ({"If-None-Match": "{etag}", "If-Modified-Since": EARLIER}, 304),
        ({"If-None-Match": "{etag}", "Range": "bytes=4-"}, 304),
        ({"If-None-Match": "{etag}", "Range": "bytes=99-"}, 304),
        ({"If-None-Match": '"another"', "Range": "bytes=4-"}, 206),
        ({"If-Modified-Since": "{date}"}, 304),
        ({"If-Modified-Since": LATER, "Range": "bytes=4-"}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Match": "{etag}", "If-None-Match": "{etag}"}, 304),
        ({"If-Match": '"another"', "If-None-Match": "{etag}"}, 412),
        ({"If-Match": "W/{etag}"}, 412),
        ({"If-Match": ","}, 412),  # names nothing
        ({"If-Match": '"another"', "Range": "bytes=4-"}, 412),
        ({"If-Match": "{etag}", "Range": "bytes=4-"}, 206),
        ({"If-Unmodified-Since": EARLIER}, 412),
        ({"If-Unmodified-Since": EARLIER, "Range": "bytes=4-"}, 412),
        ({"If-Unmodified-Since": EARLIER, "If-None-Match": "{etag}"}, 412),
        ({"If-Unmodified-Since": EARLIER, "If-Match": "{etag}"}, 200),
        ({"If-Unmodified-Since": "{date}"}, 200),
        ({"If-Unmodified-Since": "yesterday"}, 200),
        ({"If-Range": "{etag}", "Range": "bytes=4-"}, 206),
        ({"If-Range": "{date}", "Range": "bytes=4-"}, 206),
        ({"If-Range": "W/{etag}", "Range": "bytes=4-"}, 200),
        ({"If-Range": LATER, "Range": "bytes=4-"}, 200),
        ({"If-Range": EARLIER, "Range": "bytes=4-"}, 200),
        ({"If-Range": "W/{etag}", "Range": "bytes=99-"}, 200),
        ({"If-Range": '"another"'}, 200),
    ],
)
def test_conditions_come_before_ranges_in_the_order_of_http(
    client: FlaskClient, run_id: str, given: dict[str, str], status: int
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    whole = client.get(path).headers
    known = {"etag": whole["ETag"], "date": whole["Last-Modified"]}
    headers = {name: value.format(**known) for name, value in given.items()}
    response = client.get(path, headers=headers)
    assert response.status_code == status
    if status < 400:
        assert response.data == {200: DATA, 206: DATA[4:], 304: b""}[status]


def test_who_wants_the_file_of_an_earlier_time_is_told_when_it_was_written(
    client: FlaskClient, run_id: str
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    written = client.get(path).headers["Last-Modified"]
    refused = client.get(path, headers={"If-Unmodified-Since": EARLIER})
    assert refused.get_json()["code"] == "INVALID_INPUT"
    assert refused.get_json()["message"] == (
        f"If-Unmodified-Since is before the file's time, {written}"
    )


def test_a_head_has_no_range(client: FlaskClient, run_id: str) -> None:
    response = client.head(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=4-"})
    assert (response.status_code, response.headers["Content-Length"]) == (200, "10")
