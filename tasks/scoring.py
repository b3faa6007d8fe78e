"""Tell how well a finished model predicts a text."""

from __future__ import annotations

from tasks.models import finished_model
from tasks.perform import Done, Job
from trainer_app.core.observer import StopReason
from trainer_app.core.score import score
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.core.stopping import StopRequested


def work(job: Job) -> Done | StopReason:
    """Score the claimed request's text with its run's model."""
    loaded = finished_model(job.claim)
    spec = ScoreSpec.from_json(job.claim.spec)
    try:
        scored = score(loaded, spec, should_stop=job.held.should_stop)
    except StopRequested as stop:
        return stop.reason
    return Done(result=scored.to_json(), result_id=job.claim.job_id)
