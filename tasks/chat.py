"""Answer in a chat with a finished model."""

from __future__ import annotations

import json

from tasks import process
from tasks.job import Done, Job
from tasks.models import finished_model
from trainer_app.chat_sessions import ChatSessions, Turn
from trainer_app.core.chat import reply
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.device import out_of_memory_named
from trainer_app.core.observer import StopReason
from trainer_app.errors import DataNotFound


def work(job: Job) -> Done | StopReason:
    """Answer the claimed message, and write the turn down while there is a session to write to."""
    claim = job.claim
    spec = ChatSpec.from_json(claim.spec)
    sessions = ChatSessions(process.redis_client())
    try:
        session = sessions.get(str(claim.run_id), str(spec.session_id))
    except DataNotFound:
        return StopReason.CANCEL  # it was deleted, or waited for too long
    history = [
        (turn.message, turn.response)
        for turn in session.turns
        # An attempt before this one may have come as far as its answer.
        if turn.response is not None and turn.request_id != claim.job_id
    ]
    loaded = finished_model(job)
    with out_of_memory_named(f"a reply with max_new_tokens {spec.max_new_tokens}", loaded.device):
        response = reply(
            loaded, spec, history, should_stop=lambda: job.held.should_stop() is not None
        )
    reason = job.held.should_stop()
    if reason is not None:
        return reason
    job.renew_lease()
    turn = Turn(request_id=claim.job_id, message=spec.message, response=response)
    if not sessions.put(session.session_id, turn):
        return StopReason.CANCEL
    return Done(result=json.dumps({"response": response}), result_id=claim.job_id)
