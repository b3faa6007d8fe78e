"""A conditional UPDATE of one job that says of a row that does not fit why it does not."""

from __future__ import annotations

from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Connection, Row, select
from sqlalchemy.sql.dml import ReturningUpdate

from trainer_app.store.tables import JobRow

_Ts = TypeVarTuple("_Ts")


def move(
    connection: Connection,
    statement: ReturningUpdate[*_Ts],
    named: tuple[ColumnElement[bool], ...],
) -> Row[*_Ts] | None:
    """What the UPDATE of the job that is ``named`` returns; None: there is none that fits it.

    None holds until the transaction ends: whatever is read of the row then is the reason. Raises
    Unavailable where another keeps the row for too long.
    """
    moved = connection.execute(statement).one_or_none()
    if moved is None:
        # On PostgreSQL each statement sees what others have committed since the last one, such as
        # a resume: asked again with the row locked, and answered by what it has become.
        connection.execute(select(JobRow.id).where(*named).with_for_update())
        moved = connection.execute(statement).one_or_none()
    return moved
