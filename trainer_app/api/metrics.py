"""The curves of runs: whole, thinned, or followed as they grow."""

from __future__ import annotations

from typing import Final, TypedDict

from flask import Response, json

from trainer_app.api import current
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.metrics_schema import (
    CurveQuerySchema,
    CurveSchema,
    PointSchema,
)
from trainer_app.api.streams import (
    LAST_EVENT_ID,
    RETRY,
    STREAM_HEADERS,
    Events,
    Followers,
    event,
    last_event_id,
    unknown_event_id,
)
from trainer_app.store import metrics, runs
from trainer_app.store.metrics import MetricPoint

blueprint = Blueprint("metrics", __name__, description="The curves of runs.")

_POLL_SECONDS: Final = 1.0
_POINT: Final = PointSchema()
_LAST_EVENT_ID: Final = LAST_EVENT_ID | {
    "description": "The step of the last point that was received: goes on behind it. That point is "
    "sent once more if it has the loss of an evaluation, which may have been added since."
}
_EXAMPLE: Final = {name: field.metadata["example"] for name, field in _POINT.fields.items()}


class CurveQuery(TypedDict):
    """What CurveQuerySchema loads."""

    points: int | None


@blueprint.route("/runs/<id:run_id>/metrics")
@blueprint.arguments(CurveQuerySchema, location="query")
@blueprint.response(200, CurveSchema)
@blueprint.doc(operationId="getMetrics")
@blueprint.fails_with("RUN_NOT_FOUND", "UNAVAILABLE")
def get_metrics(query: CurveQuery, run_id: str) -> dict[str, object]:
    """Read a run's curve."""
    database = current.database()
    run = runs.get(database, run_id)
    points = metrics.curve(database, run.run_id, points=query["points"])
    return {"run_id": run.run_id, "points": points}


@blueprint.route("/runs/<id:run_id>/metrics/stream", parameters=[_LAST_EVENT_ID])
@blueprint.response(
    200,
    {"type": "string"},
    content_type="text/event-stream",
    description="An event a point: its data is the Point as JSON, its id the step",
    example=RETRY + event(114, json.dumps(_EXAMPLE)),
    headers=STREAM_HEADERS,
)
@blueprint.doc(operationId="streamMetrics")
@blueprint.fails_with("RUN_NOT_FOUND", "UNAVAILABLE")
def stream_metrics(run_id: str) -> Response:
    """Follow a run's curve until the run is over.

    A point to which an evaluation adds its loss is sent once more, with the same id.
    """
    database = current.database()
    run = runs.get(database, run_id)
    step = last_event_id() or 0
    if step > _last_step(run.run_id):
        raise unknown_event_id()
    last: MetricPoint | None = None

    def read(_over: bool) -> Events:
        nonlocal step, last
        # From the last step, not behind it: an evaluation may have added to that point.
        for point in metrics.curve(database, run.run_id, points=None, after_step=step - 1):
            # The client has had its last step, but perhaps without the loss of an evaluation.
            had = last is None and point.step == step and point.val_loss is None
            if point == last or had:
                continue
            step, last = point.step, point
            yield event(step, json.dumps(_POINT.dump(point)))

    followers = current.service(Followers)
    return followers.stream(followers.follow(run.run_id, read, poll_seconds=_POLL_SECONDS))


def _last_step(run_id: str) -> int:
    """The step of the run's last point: points are merged, but never taken back."""
    ends = metrics.curve(current.database(), run_id, points=2)
    return ends[-1].step if ends else 0
