"""Which part of a log is asked for."""

from __future__ import annotations

from trainer_app.api.fields import QueryBoolean, QueryInteger, about, between
from trainer_app.api.schema import StrictSchema


class TailSchema(StrictSchema):
    """How much of a log."""

    tail = QueryInteger(
        load_default=200, validate=between(1, 10_000), metadata=about("The last so many lines.")
    )


class FollowSchema(TailSchema):
    """How much of a log, and whether to wait for more."""

    follow = QueryBoolean(
        load_default=True, metadata=about("Stay until the run is over; false: end at once.")
    )
