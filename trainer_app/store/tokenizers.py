"""Tokenizers: each a name, and the job that trains what has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, Select, select, update
from sqlalchemy.engine import RowMapping

from trainer_app.core.json_spec import ASKED_LOST, RESULT_LOST, JsonSpec
from trainer_app.core.spec import TokenizerSpec
from trainer_app.errors import Conflict, RowDamaged, TokenizerNotFound
from trainer_app.store import ids, pages
from trainer_app.store.database import Database, insert
from trainer_app.store.idempotency import IdempotencyKey, claim_key
from trainer_app.store.jobs import enqueue
from trainer_app.store.pages import Page
from trainer_app.store.tables import JobKind, JobRow, Status, TokenizerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """One tokenizer and where its training stands; what is measured is None until it is done."""

    tokenizer_id: str
    job_id: str
    status: Status
    method: str
    vocab_size: int | None  # as trained
    token_count: int | None
    coverage: float | None
    oov_rate: float | None
    char_coverage: float | None
    bytes_per_token: float | None
    error_code: str | None
    message: str
    queue: str
    user_id: int
    attempt: int
    created_at: float  # unix seconds
    completed_at: float | None
    artifact_sha256: str | None  # of its manifest; None: not finished, or nobody kept it
    asked: TokenizerSpec | None  # None: it is damaged
    damage: str | None  # what of its row can no longer be read; None: nothing

    @property
    def spec(self) -> TokenizerSpec:
        """What it was asked for, for whoever cannot do without. Raises RowDamaged."""
        if self.asked is None:
            raise RowDamaged(f"{self.tokenizer_id}: {ASKED_LOST}")
        return self.asked

    def check_row(self) -> None:
        """Raise RowDamaged where not all of its row can be read."""
        if self.damage is not None:
            raise RowDamaged(f"{self.tokenizer_id}: {self.damage}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics(JsonSpec):
    """The result of its job."""

    vocab_size: int | None = None
    token_count: int | None = None
    coverage: float | None = None
    oov_rate: float | None = None
    char_coverage: float | None = None
    bytes_per_token: float | None = None


def create(
    db: Database,
    spec: TokenizerSpec,
    *,
    queue: str,
    request_id: str | None = None,
    remote_corpora: bool = False,
    idempotency: IdempotencyKey | None = None,
) -> Tokenizer:
    """Queue a tokenizer; with a key that was used before, the one that was queued then.

    Raises Conflict when the id is taken by one that has not failed, CorpusNotFound when its
    corpus_file_id has been deleted, FieldError when the key came with another body.
    """
    job_id = ids.new_id(ids.TOKENIZER)
    tokenizer_id = spec.tokenizer_id or job_id
    with db.write() as connection:
        earlier = claim_key(connection, idempotency, tokenizer_id)
        if earlier is None:
            enqueue(
                connection,
                job_id=job_id,
                kind=JobKind.TOKENIZER,
                spec=spec.to_json(),
                queue=queue,
                user_id=spec.user_id,
                corpus_file_id=spec.corpus_file_id,
                tokenizer_id=tokenizer_id,
                request_id=request_id,
                remote_corpora=remote_corpora,
            )
            _take_name(connection, tokenizer_id, job_id, spec.method)
        # Before the commit: behind it, nothing but its own answer is left to be lost.
        return _get(connection, earlier or tokenizer_id)


def get(db: Database, tokenizer_id: str) -> Tokenizer:
    """The tokenizer of this id. Raises TokenizerNotFound."""
    with db.read() as connection:
        return _get(connection, tokenizer_id)


def _get(connection: Connection, tokenizer_id: str) -> Tokenizer:
    statement = _tokenizers().where(TokenizerRow.id == tokenizer_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise TokenizerNotFound(f"{tokenizer_id}: there is no such tokenizer")
    return _tokenizer(row)


def list_(db: Database, *, limit: int = 50, after: str | None = None) -> Page[Tokenizer]:
    """All tokenizers, newest first. Raises FieldError on a bad cursor."""
    with db.read() as connection:
        older = pages.older_than(after, time=JobRow.created_at, name=TokenizerRow.id)
        statement = (
            _tokenizers()
            .where(*older)
            .order_by(JobRow.created_at.desc(), TokenizerRow.id.desc())
            .limit(limit + 1)
        )
        found = [_tokenizer(row) for row in connection.execute(statement).mappings()]
    return pages.cut(found, limit, lambda one: (one.created_at, one.tokenizer_id))


def _take_name(connection: Connection, tokenizer_id: str, job_id: str, method: str) -> None:
    """Give the name to this job, unless one that has not failed has it."""
    taken = connection.scalar(
        insert(connection.dialect.name, TokenizerRow)
        .values(id=tokenizer_id, job_id=job_id, method=method)
        .on_conflict_do_nothing(index_elements=[TokenizerRow.id])
        .returning(TokenizerRow.id)
    ) or connection.scalar(
        update(TokenizerRow)
        .where(
            TokenizerRow.id == tokenizer_id,
            TokenizerRow.job_id.in_(
                select(JobRow.id).where(
                    JobRow.tokenizer_id == tokenizer_id,
                    JobRow.kind == JobKind.TOKENIZER,
                    JobRow.status.in_([Status.FAILED, Status.CANCELLED]),
                )
            ),
        )
        .values(job_id=job_id, method=method)
        .returning(TokenizerRow.id)
    )
    if taken is None:
        raise Conflict(f"a tokenizer with the id {tokenizer_id!r} exists")


def _tokenizers() -> Select[*tuple[object, ...]]:
    return select(
        TokenizerRow.id.label("tokenizer_id"),
        TokenizerRow.method,
        TokenizerRow.artifact_sha256,
        JobRow.id.label("job_id"),
        JobRow.status,
        JobRow.result,
        JobRow.error_code,
        JobRow.message,
        JobRow.queue,
        JobRow.user_id,
        JobRow.attempt,
        JobRow.created_at,
        JobRow.completed_at,
        JobRow.spec,
    ).join(JobRow, JobRow.id == TokenizerRow.job_id)


def _tokenizer(row: RowMapping) -> Tokenizer:
    fields = dict(row)
    spec, result = TokenizerSpec.read(fields.pop("spec")), fields.pop("result")
    measured = _Statistics() if result is None else _Statistics.read(result)
    damage = ASKED_LOST if spec is None else RESULT_LOST if measured is None else None
    fields |= asdict(measured or _Statistics())
    fields |= {"asked": spec, "damage": damage, "status": Status(fields["status"])}
    return Tokenizer(**fields)
