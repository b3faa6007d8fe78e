"""What the database has been told of a curve, in the fewest bytes that prove it."""

from __future__ import annotations

from sqlalchemy import String, cast, func, select

from trainer_app.store.database import Database
from trainer_app.store.tables import MetricRow


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
