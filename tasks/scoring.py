"""Tell how well a finished model predicts a text."""

from __future__ import annotations

from tasks.job import Done, Job
from tasks.models import finished_model
from trainer_app.core.score import score
from trainer_app.core.score_spec import ScoreSpec


def work(job: Job) -> Done:
    """Score the claimed request's text with its run's model."""
    spec = ScoreSpec.from_json(job.claim.spec)
    scored = score(finished_model(job), spec, should_stop=job.held.should_stop)
    return Done(result=scored.to_json(), result_id=job.claim.job_id)
