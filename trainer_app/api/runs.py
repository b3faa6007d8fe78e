"""Training runs: start, list, look at, pause, resume, cancel."""

from __future__ import annotations

from contextlib import suppress

from trainer_app.api import current, request_id
from trainer_app.api.accept import (
    KEY_PARAMETER,
    idempotency_key,
    location_header,
    require_services,
    wake,
)
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.examples import RUN_ID
from trainer_app.api.run_checks import queue_for, resolve
from trainer_app.api.runs_schema import (
    CancelSchema,
    MovedSchema,
    RunAcceptedSchema,
    RunPageSchema,
    RunQuerySchema,
    RunSchema,
)
from trainer_app.api.schema import EmptySchema, PageQuery
from trainer_app.api.train_schema import TrainSchema
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import Unavailable
from trainer_app.events import JobEvents, Publisher
from trainer_app.store import idempotency, lease, pauses, runs
from trainer_app.store.pages import Page
from trainer_app.store.runs import Run
from trainer_app.store.tables import JobKind
from trainer_app.wishes import Wish

blueprint = Blueprint("runs", __name__, description="Training runs.")


class RunQuery(PageQuery):
    """What RunQuerySchema loads."""

    status: str | None
    model_family: str | None
    user_id: int | None
    tag: str | None


@blueprint.route("/runs/train", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(TrainSchema)
@blueprint.response(202, RunAcceptedSchema, headers=location_header(f"/runs/{RUN_ID}"))
@blueprint.doc(operationId="trainRun")
@blueprint.leads_to("getRun", "cancelRun", "getLogs", "getMetrics", run_id="$response.body#/run_id")
@blueprint.fails_with(
    "CORPUS_NOT_FOUND",
    "TOKENIZER_NOT_FOUND",
    "RUN_NOT_FOUND",
    "NOT_READY",
    "MODEL_INCOMPATIBLE",
    "CORPUS_EMPTY",
    "CORPUS_NOT_TEXT",
    "UNAVAILABLE",
)
def train_run(spec: TrainSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Start a training run."""
    require_services()
    key = idempotency_key(spec.to_json())
    run_id = idempotency.find(current.database(), key)
    if run_id is None:
        run = runs.create(
            current.database(),
            resolve(spec),
            queue=queue_for(spec),
            request_id=request_id.current(),
            remote_corpora=current.settings().data_bank.url is not None,
            idempotency=key,
        )
        run_id = run.run_id
        wake(run_id)
    return {"run_id": run_id, "job_id": run_id}, {"Location": f"/runs/{run_id}"}


@blueprint.route("/runs")
@blueprint.arguments(RunQuerySchema, location="query")
@blueprint.response(200, RunPageSchema)
@blueprint.doc(operationId="listRuns")
@blueprint.fails_with("UNAVAILABLE")
def list_runs(query: RunQuery) -> Page[Run]:
    """List runs, newest first."""
    return runs.list_(current.database(), **query)


@blueprint.route("/runs/<first_id:run_id>")
@blueprint.response(200, RunSchema)
@blueprint.doc(operationId="getRun")
@blueprint.fails_with("RUN_NOT_FOUND", "UNAVAILABLE")
def get_run(run_id: str) -> Run:
    """Tell where a run stands."""
    return runs.get(current.database(), run_id)


@blueprint.route("/runs/<id:run_id>/cancel", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(EmptySchema, required=False)
@blueprint.response(200, CancelSchema)
@blueprint.doc(operationId="cancelRun")
@blueprint.leads_to("getRun", run_id="$request.path.run_id")
@blueprint.fails_with("RUN_NOT_FOUND", "ALREADY_FINISHED", "UNAVAILABLE")
def cancel_run(_nothing: dict[str, object], run_id: str) -> dict[str, str]:
    """Ask for a run's cancellation; a queued run is cancelled at once."""
    database = current.database()
    key = idempotency_key("")
    if idempotency.find(database, key) is None:
        run, queue = runs.get(database, run_id), current.queue()
        lease.request_cancel(
            database,
            run_id,
            kind=JobKind.TRAIN,
            idempotency=key,
            on_cancelled=lambda: _tell_of_cancellation(run),
            on_asked=lambda attempt: queue.announce_cancel(run_id, Wish(up_to=attempt)),
        )
    return {"status": "cancellation-requested"}


def _tell_of_cancellation(run: Run) -> None:
    """No worker will have had the run, so nobody else tells its followers."""
    publisher = current.service(Publisher) if current.settings().redis.enabled else None
    events = JobEvents(publisher, job_id=run.run_id, user_id=run.user_id, queue_name=run.queue)
    events.failed("user", "cancelled")


@blueprint.route("/runs/<id:run_id>/pause", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(EmptySchema, required=False)
@blueprint.response(200, MovedSchema)
@blueprint.doc(operationId="pauseRun")
@blueprint.leads_to("getRun", "resumeRun", run_id="$request.path.run_id")
@blueprint.fails_with("RUN_NOT_FOUND", "ALREADY_FINISHED", "UNAVAILABLE")
def pause_run(_nothing: dict[str, object], run_id: str) -> dict[str, str]:
    """Hold a run back until it is resumed; a running one keeps a checkpoint."""
    status = pauses.pause(current.database(), run_id, idempotency=idempotency_key(""))
    return {"run_id": run_id, "status": status}


@blueprint.route("/runs/<id:run_id>/resume", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(EmptySchema, required=False)
@blueprint.response(202, MovedSchema, headers=location_header(f"/runs/{RUN_ID}"))
@blueprint.doc(operationId="resumeRun")
@blueprint.leads_to("getRun", "cancelRun", run_id="$request.path.run_id")
@blueprint.fails_with(
    "RUN_NOT_FOUND",
    "CORPUS_NOT_FOUND",
    "TOKENIZER_NOT_FOUND",
    "NOT_READY",
    "CONFLICT",
    "ALREADY_FINISHED",
    "UNAVAILABLE",
)
def resume_run(_nothing: dict[str, object], run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Let a paused, cancelled or failed run go on from its last checkpoint."""
    require_services()
    database = current.database()
    key = idempotency_key("")
    status = idempotency.find(database, key)
    if status is None:
        asked: list[Wish | None] = []
        try:
            status = pauses.resume(
                database,
                run_id,
                remote_corpora=current.settings().data_bank.url is not None,
                idempotency=key,
                # Before the run can start: it would take what was asked of it earlier for news.
                # A Redis that hangs is waited for with the right to write held, for its time-out.
                before=lambda: asked.append(current.queue().forget_cancel(run_id)),
            )
        except Unavailable:
            for wish in asked:
                if wish is not None:
                    _ask_again(run_id, wish)
            raise
        wake(run_id)
    return {"run_id": run_id, "status": status}, {"Location": f"/runs/{run_id}"}


def _ask_again(run_id: str, wish: Wish) -> None:
    """What a client has asked for in Redis outlives a resume that comes to nothing."""
    # The answer to a commit may be what was lost: the wish would end the run that goes on. Where
    # that cannot be known it is left out, for a run that is not resumed does not run either.
    with suppress(Unavailable):
        pauses.unless_resumed(
            current.database(), run_id, lambda: current.queue().announce_cancel(run_id, wish)
        )
