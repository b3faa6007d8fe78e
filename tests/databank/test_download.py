"""Whole files from a data bank that does what it can to prevent it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from tests.databank_server import (
    Behaviour,
    DataBankServer,
    Request,
    body,
    cut,
    endless,
    etag,
    hang_up,
    sha256,
    short,
    status,
    trickle,
)
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import ShouldStop, StopRequested, never
from trainer_app.databank.client import DataBank, OtherBytes
from trainer_app.databank.download import download
from trainer_app.databank.retry import Patience
from trainer_app.errors import DataBankUnavailable, DataNotFound, DiskFull

TEXT = b"".join(b"%d bottles of beer\n" % number for number in range(20_000))


class Fetch(Protocol):
    def __call__(
        self, file_id: str = "a", *, max_bytes: int = 10_000_000, should_stop: ShouldStop = never
    ) -> None: ...


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "a.txt"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fetch(bank: DataBank, target: Path, patience: Patience, said: list[str]) -> Fetch:
    def run(
        file_id: str = "a", *, max_bytes: int = 10_000_000, should_stop: ShouldStop = never
    ) -> None:
        download(
            bank,
            file_id,
            target,
            sha256=sha256(TEXT),
            max_bytes=max_bytes,
            patience=patience,
            should_stop=should_stop,
            on_message=said.append,
        )

    return run


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def test_a_file_is_fetched_and_nothing_else_is_left(
    server: DataBankServer, fetch: Fetch, target: Path, said: list[str]
) -> None:
    server.put(TEXT, "a")

    fetch()

    assert target.read_bytes() == TEXT
    assert list(target.parent.iterdir()) == [target]
    assert said[0].startswith("fetching: 0.")


@pytest.mark.parametrize(
    "failure", [status(500), status(503), status(429), hang_up, cut(0), short, trickle, endless]
)
def test_what_fails_once_is_tried_again(
    server: DataBankServer, fetch: Fetch, target: Path, failure: Behaviour
) -> None:
    server.put(TEXT, "a")
    server.then("GET", failure)

    fetch()

    assert target.read_bytes() == TEXT
    assert len(server.seen("GET")) == 2


def test_a_head_that_fails_is_tried_again(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    server.then("HEAD", status(502), hang_up)

    fetch()

    assert target.read_bytes() == TEXT


def test_a_download_goes_on_where_its_connection_was_cut(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    server.then("GET", cut(100_000), cut(50_000))

    fetch()

    assert target.read_bytes() == TEXT
    ranges = [request.headers["Range"] for request in server.seen("GET")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert server.seen("GET")[1].headers["If-Range"] == etag(TEXT)


def test_a_download_goes_on_where_another_process_has_died(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).write_bytes(TEXT[:1_000])

    fetch()

    assert target.read_bytes() == TEXT
    assert server.seen("GET")[0].headers["Range"] == "bytes=1000-"


def test_a_part_that_is_whole_needs_no_more_bytes(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).write_bytes(TEXT)

    fetch()

    assert target.read_bytes() == TEXT
    assert server.seen("GET") == []


@pytest.mark.parametrize("left", [b"another text" * 10, TEXT + b"and more"])
def test_a_part_of_another_file_is_thrown_away(
    server: DataBankServer, fetch: Fetch, target: Path, left: bytes
) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).write_bytes(left)

    fetch()

    assert target.read_bytes() == TEXT


def test_a_server_that_refuses_to_resume_is_asked_for_all(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).write_bytes(TEXT[:1_000])
    server.then("GET", status(416))

    fetch()

    assert target.read_bytes() == TEXT


def test_a_file_that_changes_on_the_way_is_refused(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")

    def change(request: Request) -> None:
        server.put(b"another text", "a")
        cut_off(request)

    cut_off = cut(100_000)
    server.then("GET", change)

    with pytest.raises(OtherBytes):
        fetch()

    assert not target.exists()


def test_a_file_of_another_digest_is_not_fetched(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(b"another text", "a")

    with pytest.raises(OtherBytes, match=sha256(TEXT)):
        fetch()

    assert server.seen("GET") == []


def test_wrong_bytes_are_fetched_three_times_and_never_kept(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    wrong = TEXT.replace(b"1", b"2")
    server.always("GET", body(wrong, ETag=etag(TEXT)))

    with pytest.raises(DataBankUnavailable, match=sha256(wrong)):
        fetch()

    assert len(server.seen("GET")) == 3
    assert list(target.parent.iterdir()) == []


def test_a_body_longer_than_announced_is_not_kept(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    server.always("GET", body(TEXT + b"x", ETag=etag(TEXT)))

    with pytest.raises(DataBankUnavailable, match="more than it announced"):
        fetch()

    assert list(target.parent.iterdir()) == []


def test_a_body_without_end_fills_no_disk(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    server.always("GET", endless)

    with pytest.raises(DataBankUnavailable, match="more than it announced"):
        fetch()

    assert list(target.parent.iterdir()) == []


def test_a_file_larger_than_allowed_is_not_fetched(server: DataBankServer, fetch: Fetch) -> None:
    server.put(TEXT, "a")

    with pytest.raises(DataBankUnavailable, match="APP__DATA_BANK_MAX_BYTES allows 1000"):
        fetch(max_bytes=1_000)

    assert server.seen("GET") == []


def test_a_file_that_is_not_there_is_asked_for_three_times(
    server: DataBankServer, fetch: Fetch
) -> None:
    with pytest.raises(DataNotFound):
        fetch()

    assert len(server.requests) == 3


def test_a_file_that_comes_late_is_fetched(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    server.then("HEAD", status(404))

    fetch()

    assert target.read_bytes() == TEXT


def test_a_server_that_fails_for_ever_is_given_up_and_the_part_is_kept(
    server: DataBankServer, fetch: Fetch, target: Path, said: list[str]
) -> None:
    server.put(TEXT, "a")
    server.then("GET", cut(100_000))
    server.always("GET", status(500))

    with pytest.raises(DataBankUnavailable, match="500"):
        fetch()

    assert part_of(target).read_bytes() == TEXT[:100_000]
    of = f"100000 of {len(TEXT)} bytes have come"
    assert said[1].endswith(f"{of}; trying again")  # of the body that was cut
    assert said[-1] == f"the data bank answers 500 to GET; {of}; trying again"


def test_to_come_as_far_as_before_is_no_progress(server: DataBankServer, fetch: Fetch) -> None:
    server.put(TEXT, "a")

    def no_range(request: Request) -> None:
        del request.headers["Range"]
        cut(200_000)(request)

    server.always("GET", no_range)

    with pytest.raises(DataBankUnavailable):
        fetch()

    assert len(server.seen("GET")) < 12


def test_a_stop_keeps_what_has_come(server: DataBankServer, fetch: Fetch, target: Path) -> None:
    server.put(TEXT, "a")
    server.always("GET", cut(100_000))

    with pytest.raises(StopRequested):
        fetch(should_stop=lambda: StopReason.DRAIN if len(server.seen("GET")) == 2 else None)

    assert part_of(target).stat().st_size >= 100_000


def test_a_stop_while_the_digest_is_taken_keeps_the_part(
    server: DataBankServer, fetch: Fetch, target: Path
) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).write_bytes(TEXT)

    with pytest.raises(StopRequested):
        fetch(should_stop=lambda: StopReason.CANCEL)

    assert part_of(target).exists()


def test_an_empty_file_is_a_file(
    server: DataBankServer, bank: DataBank, target: Path, patience: Patience
) -> None:
    server.put(b"", "empty")

    download(
        bank,
        "empty",
        target,
        sha256=sha256(b""),
        max_bytes=10,
        patience=patience,
        should_stop=never,
        on_message=lambda _: None,
    )

    assert target.read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(server: DataBankServer, fetch: Fetch, target: Path) -> None:
    server.put(TEXT, "a")
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")

    with pytest.raises(DiskFull):
        fetch()
