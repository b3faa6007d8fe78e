"""The curve of a run: one row a step that was logged or evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Integer,
    Select,
    String,
    case,
    cast,
    delete,
    func,
    select,
)

from trainer_app.store.claims import Claim, hold
from trainer_app.store.database import NOW, Database, insert
from trainer_app.store.tables import MetricRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """One step of the curve; None: not measured there. Losses in nats per predicted token."""

    step: int  # 1-based: optimizer steps done
    epoch: int = 0  # 0-based
    train_loss: float | None = None
    val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None  # before clipping
    tokens_per_sec: float | None = None
    step_ms: float | None = None
    mfu: float | None = None  # model FLOPs utilisation, 0 to 1: core/performance.py
    chain: str | None = None  # of the training losses up to here: core/loss_chain.py
    attempt: int = 0  # which attempt measured it; 0: the one that tells the store of it
    at: float = 0.0  # unix seconds, by the database's clock; set by the store


_MEASURES: Final = (
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_sec",
    "step_ms",
    "mfu",
    "chain",
)
_COLUMNS: Final = [getattr(MetricRow, field.name) for field in fields(MetricPoint)]


def record(
    connection: Connection, run_id: str, attempt: int, points: Iterable[MetricPoint]
) -> None:
    """Write points within the caller's transaction, which holds the run's lease.

    Points of one step are merged: an evaluation adds its loss to what training measured there.
    What is not finite counts as not measured: JSON has no word for it.
    """
    rows: dict[int, dict[str, object]] = {}
    for point in points:
        measured = {name: getattr(point, name) for name in _MEASURES}
        known = {
            name: value
            for name, value in measured.items()
            if value is not None and (isinstance(value, str) or math.isfinite(value))
        }
        row = rows.setdefault(point.step, dict.fromkeys(_MEASURES))
        measurer = point.attempt or attempt
        row |= {"run_id": run_id, "step": point.step, "epoch": point.epoch, "attempt": measurer}
        row |= known
    if not rows:
        return
    connection.execute(_upsert(connection.dialect.name), list(rows.values()))


@cache
def _upsert(dialect: str) -> Executable:
    # Built once: it takes longer than to write the points of half a second.
    statement = insert(dialect, MetricRow).values(at=NOW)
    new = statement.excluded
    is_older = new.attempt < MetricRow.attempt  # it fills gaps, no more
    changed = {}
    for name in _MEASURES:
        there = getattr(MetricRow, name)
        changed[name] = case(
            (is_older, func.coalesce(there, new[name])), else_=func.coalesce(new[name], there)
        )
    newest = case((is_older, MetricRow.attempt), else_=new.attempt)
    return statement.on_conflict_do_update(
        index_elements=[MetricRow.run_id, MetricRow.step],
        set_={"epoch": new.epoch, "attempt": newest, "at": new.at, **changed},
    )


def cut(db: Database, claim: Claim, *, after: int) -> None:
    """Take the points beyond a step off a curve: its run has ended there. Raises LeaseLost."""
    with db.write() as connection:
        hold(connection, claim, {"heartbeat_at": NOW})
        connection.execute(
            delete(MetricRow).where(MetricRow.run_id == claim.job_id, MetricRow.step > after)
        )


def curve(
    db: Database, run_id: str, *, points: int | None = None, after_step: int | None = None
) -> list[MetricPoint]:
    """A run's curve in the order of its steps, those after ``after_step`` alone if given.

    ``points`` (>= 2) thins it to so many, evenly over the rows: first and last stay, and of the
    others those with an evaluation are preferred.
    """
    conditions = [MetricRow.run_id == run_id]
    if after_step is not None:
        conditions.append(MetricRow.step > after_step)
    statement = select(*_COLUMNS).where(*conditions).order_by(MetricRow.step)
    if points is not None:
        statement = statement.where(MetricRow.step.in_(_chosen(points, conditions)))
    with db.read() as connection:
        return [MetricPoint(**row) for row in connection.execute(statement).mappings()]


def lacking(db: Database, run_id: str, points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """Those of a few points that have what the run's curve has not.

    Or has otherwise, from an attempt before theirs: of what more than one has measured, the last
    is what the run goes on from.
    """
    steps = {point.step for point in points}
    names = ("train_loss", "val_loss", "chain")
    columns = [getattr(MetricRow, name) for name in ("step", "attempt", *names)]
    statement = select(*columns).where(MetricRow.run_id == run_id, MetricRow.step.in_(steps))
    with db.read() as connection:
        known = {row.step: row for row in connection.execute(statement)}

    def is_news(point: MetricPoint) -> bool:
        row = known.get(point.step)
        if row is None:
            return True
        measured = [name for name in names if getattr(point, name) is not None]
        if any(getattr(row, name) is None for name in measured):
            return True
        older = row.attempt < point.attempt
        return older and any(getattr(row, name) != getattr(point, name) for name in measured)

    return [point for point in points if is_news(point)]


def losses_told(db: Database, run_id: str, *, first: int, last: int) -> set[str]:
    """The training losses from one step to another that a curve has: each as ``<step><chain>``.

    The chain is a hash of all losses up to its step: where it is the same, they are. Of many rows
    one text is the quickest to fetch. Raises Unavailable.
    """
    each = cast(MetricRow.step, String).concat(MetricRow.chain)
    statement = select(func.aggregate_strings(each, ",")).where(
        MetricRow.run_id == run_id,
        MetricRow.step.between(first, last),
        MetricRow.train_loss.is_not(None),
        MetricRow.chain.is_not(None),
    )
    with db.read() as connection:
        told = connection.scalar(statement)
    return set(told.split(",")) if told else set()


def _chosen(points: int, conditions: list[ColumnElement[bool]]) -> Select[int]:
    """The steps that stand for the curve: one a bucket; the last row has a bucket of its own."""
    row = func.row_number().over(order_by=MetricRow.step) - 1
    rows = func.count().over()
    numbered = (
        select(
            MetricRow.step,
            row.label("row"),
            (row * (points - 1) // func.nullif(rows - 1, 0, type_=Integer)).label("bucket"),
            case((row == 0, 0), (MetricRow.val_loss.is_not(None), 1), else_=2).label("rank"),
        )
        .where(*conditions)
        .subquery()
    )
    best = func.row_number().over(
        partition_by=numbered.c.bucket, order_by=[numbered.c.rank, numbered.c.row]
    )
    ranked = select(numbered.c.step, best.label("best")).subquery()
    return select(ranked.c.step).where(ranked.c.best == 1)
