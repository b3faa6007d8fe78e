"""Let a finished model continue a text."""

from __future__ import annotations

from tasks.job import Done, Job
from tasks.models import finished_model
from trainer_app.core.device import out_of_memory_named
from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.observer import StopReason


def work(job: Job) -> Done | StopReason:
    """Continue the claimed request's prompt with its run's model."""
    spec = GenerateSpec.from_json(job.claim.spec)
    loaded = finished_model(job)
    what = (
        f"a generation with num_return_sequences {spec.num_return_sequences} and max_new_tokens "
        f"{spec.max_new_tokens}"
    )
    with out_of_memory_named(what, loaded.device):
        generation = generate(loaded, spec, should_stop=lambda: job.held.should_stop() is not None)
    reason = job.held.should_stop()
    if reason is not None:
        return reason
    return Done(result=generation.to_json(), result_id=job.claim.job_id)
