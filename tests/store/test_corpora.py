"""Uploaded texts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest
from sqlalchemy import insert

from trainer_app.core.spec import TokenizerSpec
from trainer_app.errors import Conflict, CorpusNotFound
from trainer_app.store import corpora, lease, requests, runs, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.tables import CorpusRow

_ID = "a" * 64


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


def test_the_same_text_twice_is_one_corpus(database: Database) -> None:
    first = corpora.add(database, _ID, 10, 2)
    assert (first.file_id, first.bytes, first.lines) == (_ID, 10, 2)
    assert corpora.add(database, _ID, 10, 2) == first == corpora.get(database, _ID)
    assert corpora.list_(database).items == [first]


def test_the_same_text_many_times_at_once_is_one_corpus(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: corpora.add(database, _ID, 10, 2), range(8)))
    assert len(corpora.list_(database).items) == 1


def test_a_corpus_that_is_being_committed_counts_as_recorded(database: Database) -> None:
    called = list[str]()

    def ask() -> None:
        corpora.unless_recorded(database, _ID, lambda: called.append(_ID))

    with ThreadPoolExecutor(1) as pool:
        with database.write() as connection:
            row = {"file_id": _ID, "bytes": 10, "lines": 2, "created_at": 1.0}
            connection.execute(insert(CorpusRow).values(row))
            asked = pool.submit(ask)
            time.sleep(0.2)
            assert not asked.done()
        asked.result()
    assert called == []


def test_what_is_done_unless_a_corpus_is_recorded_leaves_no_row(database: Database) -> None:
    called = list[str]()
    corpora.unless_recorded(database, _ID, lambda: called.append(_ID))
    assert (called, corpora.list_(database).items) == ([_ID], [])


def test_an_unknown_corpus_is_not_found(database: Database) -> None:
    with pytest.raises(CorpusNotFound, match=_ID):
        corpora.get(database, _ID)
    with pytest.raises(CorpusNotFound, match=_ID):
        corpora.delete(database, _ID)


def test_corpora_are_listed_newest_first_a_page_at_a_time(database: Database) -> None:
    ids = [digit * 64 for digit in "021"]
    for file_id in ids:
        corpora.add(database, file_id, 1, 1)
        time.sleep(0.002)  # SQLite's clock counts milliseconds
    page = corpora.list_(database, limit=2)
    assert [corpus.file_id for corpus in page.items] == ids[:0:-1]
    rest = corpora.list_(database, limit=2, after=page.next)
    assert [corpus.file_id for corpus in rest.items] == ids[:1]


def test_a_cursor_leads_on_when_its_item_was_deleted(database: Database) -> None:
    for digit in "abc":
        corpora.add(database, digit * 64, 1, 1)
        time.sleep(0.002)
    page = corpora.list_(database, limit=1)
    corpora.delete(database, page.items[0].file_id)
    rest = corpora.list_(database, after=page.next)
    assert [corpus.file_id[0] for corpus in rest.items] == ["b", "a"]


def test_a_corpus_that_a_run_will_read_cannot_be_deleted(
    database: Database, another_run: AnotherRun
) -> None:
    corpora.add(database, _ID, 10, 2)
    run_id = another_run(corpus_file_id=_ID, corpus_path=None)
    with pytest.raises(Conflict, match=run_id):
        corpora.delete(database, _ID)
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    with pytest.raises(Conflict, match=run_id):
        corpora.delete(database, _ID)
    lease.finish(database, claim, "completed")
    corpora.delete(database, _ID)
    with pytest.raises(CorpusNotFound):
        corpora.get(database, _ID)
    assert runs.get(database, run_id).spec.corpus_file_id == _ID


def test_a_corpus_that_a_tokenizer_will_read_cannot_be_deleted(database: Database) -> None:
    corpora.add(database, _ID, 10, 2)
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_file_id=_ID, corpus_sha256=_ID)
    tokenizers.create(database, spec, queue="trainer.light")
    with pytest.raises(Conflict):
        corpora.delete(database, _ID)


def test_a_corpus_that_a_request_will_read_cannot_be_deleted(
    database: Database, another_run: AnotherRun
) -> None:
    corpora.add(database, _ID, 10, 2)
    run_id = another_run(corpus_file_id=_ID, corpus_path=None)
    lease.request_cancel(database, run_id)

    def ask(file_id: str) -> str:
        return requests.create(
            database,
            lease.JobKind.EVALUATE,
            run_id,
            "{}",
            queue="q",
            user_id=0,
            corpus_file_id=file_id,
        ).request_id

    ask("b" * 64)  # which is gone already
    request_id = ask(_ID)
    with pytest.raises(Conflict, match=f"{request_id} still reads this corpus"):
        corpora.delete(database, _ID)
    lease.request_cancel(database, request_id)
    corpora.delete(database, _ID)


def test_a_corpus_is_never_deleted_from_under_a_new_run(
    database: Database, another_run: AnotherRun
) -> None:
    for number in range(10):
        file_id = f"{number:064}"
        corpora.add(database, file_id, 1, 1)
        together = threading.Barrier(2)

        def post(file_id: str = file_id, together: threading.Barrier = together) -> bool:
            together.wait(10)
            try:
                another_run(corpus_file_id=file_id, corpus_path=None)
            except CorpusNotFound:
                return False
            return True

        def delete(file_id: str = file_id, together: threading.Barrier = together) -> bool:
            together.wait(10)
            try:
                corpora.delete(database, file_id)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            posted, deleted = pool.submit(post), pool.submit(delete)
            assert posted.result() != deleted.result()
