"""New jobs of any kind."""

from __future__ import annotations

from sqlalchemy import Connection, Select, insert, select

from trainer_app.errors import CorpusNotFound, TokenizerNotFound
from trainer_app.store.database import NOW
from trainer_app.store.tables import CorpusRow, JobKind, JobRow, Status, TokenizerRow


def keep_what_it_reads(
    connection: Connection,
    *,
    corpus_file_id: str | None,
    tokenizer_id: str | None,
    remote_corpora: bool,
) -> None:
    """Keep what a job is to read from being deleted before the job can be seen to use it.

    Raises CorpusNotFound and TokenizerNotFound where it is deleted already; not for a corpus if
    ``remote_corpora``: one that is not here may be in the data bank.
    """
    if corpus_file_id is not None:
        corpus = select(CorpusRow.file_id).where(CorpusRow.file_id == corpus_file_id)
        if not _locked(connection, corpus) and not remote_corpora:
            raise CorpusNotFound(f"{corpus_file_id}: there is no such corpus")
    if tokenizer_id is not None:
        tokenizer = select(TokenizerRow.id).where(TokenizerRow.id == tokenizer_id)
        if not _locked(connection, tokenizer):
            raise TokenizerNotFound(f"{tokenizer_id}: there is no such tokenizer")


def _locked(connection: Connection, named: Select[str]) -> bool:
    """Whether the row is there; nobody can delete it before the transaction ends."""
    return connection.scalar(named.with_for_update(read=True, key_share=True)) is not None


def enqueue(
    connection: Connection,
    *,
    job_id: str,
    kind: JobKind,
    spec: str,
    queue: str,
    user_id: int,
    priority: int = 0,
    run_id: str | None = None,
    topic: str | None = None,
    corpus_file_id: str | None = None,
    tokenizer_id: str | None = None,
    request_id: str | None = None,
    remote_corpora: bool = False,
) -> None:
    """Add a queued job within the caller's transaction.

    Raises CorpusNotFound and TokenizerNotFound as ``keep_what_it_reads`` does.
    """
    keep_what_it_reads(
        connection,
        corpus_file_id=corpus_file_id,
        tokenizer_id=tokenizer_id if kind is JobKind.TRAIN else None,
        remote_corpora=remote_corpora,
    )
    connection.execute(
        insert(JobRow).values(
            id=job_id,
            kind=kind,
            status=Status.QUEUED,
            spec=spec,
            queue=queue,
            user_id=user_id,
            priority=priority,
            created_at=NOW,
            run_id=run_id,
            topic=topic,
            corpus_file_id=corpus_file_id,
            tokenizer_id=tokenizer_id,
            request_id=request_id,
        )
    )
