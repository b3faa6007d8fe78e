"""New jobs of any kind."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from trainer_app.errors import CorpusNotFound
from trainer_app.store.database import NOW
from trainer_app.store.tables import CorpusRow, JobKind, JobRow, Status


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

    Raises CorpusNotFound when the corpus that it is to read was deleted in the meantime, unless
    ``remote_corpora``: one that is not here may be in the data bank.
    """
    if corpus_file_id is not None:
        # The lock keeps the corpus from being deleted before this job can be seen to use it.
        found = connection.scalar(
            select(CorpusRow.file_id)
            .where(CorpusRow.file_id == corpus_file_id)
            .with_for_update(read=True, key_share=True)
        )
        if found is None and not remote_corpora:
            raise CorpusNotFound(f"{corpus_file_id}: there is no such corpus")
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
