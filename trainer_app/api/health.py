"""Probes for whoever watches the service."""

from __future__ import annotations

from trainer_app.api import current
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.health_schema import HealthSchema, ReadinessSchema
from trainer_app.errors import Unavailable
from trainer_app.queue import training_queue

blueprint = Blueprint("health", __name__, description="Probes; they need no key.")


@blueprint.route("/healthz")
@blueprint.response(200, HealthSchema)
@blueprint.doc(operationId="getHealth")
def get_health() -> dict[str, str]:
    """Tell that the process answers."""
    return {"status": "ok"}


@blueprint.route("/readyz")
@blueprint.response(200, ReadinessSchema)
@blueprint.alt_response(
    503,
    schema=ReadinessSchema,
    description="Something is missing",
    example={"status": "degraded", "reason": "no-worker"},
)
@blueprint.doc(operationId="getReadiness")
def get_readiness() -> tuple[dict[str, str | None], int]:
    """Tell whether Redis, the database and a training worker are there."""
    reason = _what_is_missing()
    if reason is None:
        return {"status": "ready", "reason": None}, 200
    return {"status": "degraded", "reason": reason}, 503


def _what_is_missing() -> str | None:
    try:
        current.queue().ping()
        workers = current.queue().workers()
    except Unavailable:
        return "redis-unavailable"
    try:
        current.database().ping()
    except Unavailable:
        return "database-unavailable"
    shared = training_queue(current.settings())
    return None if any(shared in worker.queues for worker in workers) else "no-worker"
