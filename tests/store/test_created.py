"""What is created is told of by the transaction that commits it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import NoReturn

import pytest

from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import Unavailable
from trainer_app.store import corpora, requests, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.lease import JobKind

Create = Callable[[Database, str], object]

_FILE_ID = "a" * 64


class GoneAfterCommit(Database):
    """Takes what is written, and is away for all that comes after it."""

    def read(self) -> NoReturn:
        raise Unavailable("the database is away")


def _corpus(database: Database, _run_id: str) -> object:
    return corpora.add(database, _FILE_ID, 10, 2)


def _run(database: Database, _run_id: str) -> object:
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    return runs.create(database, spec, queue="trainer")


def _tokenizer(database: Database, _run_id: str) -> object:
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id="words")
    return tokenizers.create(database, spec, queue="trainer.light")


def _request(database: Database, run_id: str) -> object:
    return requests.create(database, JobKind.GENERATE, run_id, "{}", queue="q", user_id=0)


@pytest.mark.parametrize("create", [_corpus, _run, _tokenizer, _request])
def test_what_was_committed_is_told_of_though_the_database_is_away_since(
    database_url: str, run_id: str, create: Create
) -> None:
    with closing(GoneAfterCommit(database_url)) as database:
        assert create(database, run_id)
