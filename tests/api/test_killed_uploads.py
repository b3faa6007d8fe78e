"""Uploads whose process is killed: what they leave goes, and can be sent again."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.api.conftest import World
from trainer_app.cleanup.report import Item
from trainer_app.cleanup.uploads import clean_uploads
from trainer_app.settings import Settings
from trainer_app.upload_folder import mark_path

ROOT = Path(__file__).parents[2]
TEXT = b"Once upon a time.\n"
SHA256 = hashlib.sha256(TEXT).hexdigest()
# Sends one upload to an application of its own, which dies at this point of it.
DYING = """
import io, os, signal, sys
from trainer_app.factory import create_app
from trainer_app.settings import load_settings
from trainer_app.store import corpora

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

class Input(io.BytesIO):
    def readinto(self, buffer):
        return die() if self.tell() else super().readinto(memoryview(buffer)[:9])

text = b"Once upon a time.\\n"
body = Input(text)
if sys.argv[1] == "record":
    corpora.add, body = die, io.BytesIO(text)
client = create_app(load_settings()).test_client()
client.post("/corpora", input_stream=body, content_length=len(text), content_type="text/plain")
"""


def files(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.paths.uploads.iterdir() if path.name != ".lock")


def dies(at: str) -> None:
    """Sends the text to a process with the test's own environment, which is killed at it."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, at],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def ten_minutes_later(mark: Path) -> None:
    then = time.time() - 601
    os.utime(mark, (then, then))


def test_a_text_whose_server_is_killed_before_its_row_is_there_goes_after_ten_minutes(
    settings: Settings, world: World
) -> None:
    dies("record")
    mark = mark_path(settings.paths.uploads, SHA256)
    assert files(settings) == sorted([mark.name, f"{SHA256}.txt"])
    assert clean_uploads(world.database, settings.paths.uploads).removed == ()
    ten_minutes_later(mark)
    removed = clean_uploads(world.database, settings.paths.uploads).removed
    assert [item.name for item in removed] == [f"{SHA256}.txt"]
    assert files(settings) == []


def test_a_text_whose_server_is_killed_before_its_row_is_there_can_be_sent_again_and_stays(
    client: FlaskClient, settings: Settings, world: World
) -> None:
    dies("record")
    ten_minutes_later(mark_path(settings.paths.uploads, SHA256))
    answer = client.post("/corpora", data=TEXT, content_type="text/plain")
    assert answer.status_code == 201
    assert files(settings) == [f"{SHA256}.txt"]
    assert clean_uploads(world.database, settings.paths.uploads).removed == ()
    assert client.delete(f"/corpora/{SHA256}").status_code == 204
    assert files(settings) == []


def test_what_a_killed_server_has_taken_of_a_text_goes_with_the_next_upload(
    client: FlaskClient, settings: Settings
) -> None:
    dies("body")
    (part,) = files(settings)
    assert part.endswith(".tmp")
    assert client.post("/corpora", data=b"another", content_type="text/plain").status_code == 201
    assert part not in files(settings)


def test_a_text_is_refused_before_it_is_read_where_nobody_can_write_to_the_database(
    client: FlaskClient, settings: Settings, world: World
) -> None:
    body = BytesIO(TEXT)
    with closing(sqlite3.connect(str(world.database.file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.post(
            "/corpora", input_stream=body, content_length=len(TEXT), content_type="text/plain"
        )
    assert (answer.status_code, answer.get_json()["code"]) == (503, "UNAVAILABLE")
    assert body.tell() == 0
    assert not settings.paths.uploads.exists()
    again = client.post(
        "/corpora", input_stream=body, content_length=len(TEXT), content_type="text/plain"
    )
    assert (again.status_code, body.tell()) == (201, len(TEXT))


def test_uploads_and_deletions_beside_clean_ups_that_allow_no_time_lose_no_text(
    client: FlaskClient, settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_app.cleanup.uploads._UNRECORDED_SECONDS", -60.0)
    folder, over = settings.paths.uploads, threading.Event()
    one = client.application.test_client

    def send() -> list[int]:
        codes = list[int]()
        for _ in range(15):
            codes.append(one().post("/corpora", data=TEXT, content_type="text/plain").status_code)
            one().delete(f"/corpora/{SHA256}")
        codes.append(one().post("/corpora", data=TEXT, content_type="text/plain").status_code)
        return codes

    def clean() -> list[Item]:
        """What it has removed, but for files that were not locked yet, nor written to."""
        removed = list[Item]()
        while not over.is_set():
            removed += clean_uploads(world.database, folder).removed
        return [item for item in removed if item.bytes or not item.name.endswith(".tmp")]

    with ThreadPoolExecutor(4) as pool:
        cleaner = pool.submit(clean)
        senders = [pool.submit(send) for _ in range(3)]
        codes = [code for sender in senders for code in sender.result()]
        over.set()
    assert set(codes) == {201}
    assert cleaner.result() == []
    recorded = one().get("/corpora").get_json()["data"]
    assert (files(settings), len(recorded)) == ([f"{SHA256}.txt"] * len(recorded), len(recorded))
