"""The logs of runs: their end, or followed as they grow."""

from __future__ import annotations

from typing import Final, TypedDict

from flask import Response

from trainer_app.api import current
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.logs_schema import FollowSchema, TailSchema
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
from trainer_app.api.tail import is_line_end, last_lines, lines_from, start_of_last_lines
from trainer_app.log import job_log_path
from trainer_app.store import runs

blueprint = Blueprint("logs", __name__, description="What runs tell while they work.")


_LINE: Final = (
    '{"ts": "2026-01-01T00:05:12.480+00:00", "level": "info", "event": "step", "step": 114, '
    '"total_steps": 171, "epoch": 1, "train_loss": 3.8712}'
)


class Tail(TypedDict):
    """What TailSchema loads."""

    tail: int


class Follow(Tail):
    """What FollowSchema loads."""

    follow: bool


@blueprint.route("/runs/<id:run_id>/logs")
@blueprint.arguments(TailSchema, location="query")
@blueprint.response(
    200,
    {"type": "string"},
    content_type="text/plain",
    description="JSON lines, oldest first",
    example=f"{_LINE}\n",
)
@blueprint.doc(operationId="getLogs")
@blueprint.fails_with("RUN_NOT_FOUND", "UNAVAILABLE")
def get_logs(query: Tail, run_id: str) -> Response:
    """Read the end of a run's log."""
    run = runs.get(current.database(), run_id)
    path = job_log_path(current.settings(), run.run_id)
    return Response(last_lines(path, query["tail"]), mimetype="text/plain")


@blueprint.route("/runs/<id:run_id>/logs/stream", parameters=[LAST_EVENT_ID])
@blueprint.arguments(FollowSchema, location="query")
@blueprint.response(
    200,
    {"type": "string"},
    content_type="text/event-stream",
    description="An event a line: its data is the line, its id the offset behind it",
    example=RETRY + event(4_096, _LINE),
    headers=STREAM_HEADERS,
)
@blueprint.doc(operationId="streamLogs")
@blueprint.fails_with("RUN_NOT_FOUND", "UNAVAILABLE")
def stream_logs(query: Follow, run_id: str) -> Response:
    """Follow a run's log until the run is over; Last-Event-ID goes on without a gap."""
    run = runs.get(current.database(), run_id)
    path = job_log_path(current.settings(), run.run_id)
    resumed_at = last_event_id()
    if resumed_at is not None and not is_line_end(path, resumed_at):
        raise unknown_event_id()
    offset = start_of_last_lines(path, query["tail"]) if resumed_at is None else resumed_at

    def read(over: bool) -> Events:
        nonlocal offset
        for line in lines_from(path, offset, whole=over):
            offset = line.end
            yield event(offset, line.text.decode("utf-8", "replace"))

    followers = current.service(Followers)
    return followers.stream(followers.follow(run.run_id, read) if query["follow"] else read(True))
