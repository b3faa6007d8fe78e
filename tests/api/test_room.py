"""A disk on which no more files can be made, whatever bytes are free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from tests.few_files import all_taken, disk_of_few_files
from trainer_app.settings import Settings
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World


@pytest.fixture
def folder(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Path]:
    """One of those that jobs and uploads write to, with a disk of its own."""
    found: Path = getattr(settings.paths, request.param)
    found.mkdir(parents=True, exist_ok=True)
    with disk_of_few_files(found):
        yield found


@pytest.mark.parametrize("folder", ["data_root"], indirect=True)
def test_what_would_fail_for_want_of_files_is_refused_until_there_is_room(
    folder: Path, client: FlaskClient, world: World
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    run_id = world.run(Status.FAILED)
    train = {"model_family": "char_lstm", "corpus_path": world.corpus()}
    tokenizer = {"method": "bpe", "vocab_size": 300, "corpus_path": world.corpus()}
    with all_taken(folder):
        for path, body in (
            ("/runs/train", train),
            ("/tokenizers/train", tokenizer),
            (f"/runs/{run_id}/resume", {}),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.get_json()["code"]) == (503, "UNAVAILABLE"), path
        assert client.get(f"/runs/{run_id}").status_code == 200
    assert client.post("/runs/train", json=train).status_code == 202


@pytest.mark.parametrize("folder", ["uploads"], indirect=True)
def test_an_upload_is_refused_before_it_is_sent(client: FlaskClient, folder: Path) -> None:
    with all_taken(folder):
        answer = client.post("/corpora", data=b"a text\n" * 100, content_type="text/plain")
        assert answer.status_code == 413
    answer = client.post("/corpora", data=b"a text\n" * 100, content_type="text/plain")
    assert answer.status_code == 201
