"""Chat: talk with a finished model, turn by turn."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from flask import Response

from trainer_app.api import current
from trainer_app.api.accept import KEY_PARAMETER, location_header
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.chat_schema import (
    ASSISTANT,
    USER,
    ChatHistorySchema,
    ChatReplySchema,
    ChatSchema,
)
from trainer_app.api.examples import RUN_ID, SESSION_ID, TURN_ID
from trainer_app.api.run_requests import Resolved, ask, find, shown
from trainer_app.chat_sessions import ChatSession, ChatSessions, Turn
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.errors import Conflict, DataNotFound, Unavailable
from trainer_app.store import requests, runs
from trainer_app.store.tables import JobKind
from trainer_app.wishes import Wish

if TYPE_CHECKING:
    from trainer_app.store.requests import Request
    from trainer_app.store.runs import Run

MAX_TURNS: Final = 256  # of a session: it is kept in Redis as a whole

blueprint = Blueprint("chat", __name__, description="Talk with finished models.")


@blueprint.route("/runs/<id:run_id>/chat", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(ChatSchema)
@blueprint.response(
    202, ChatReplySchema, headers=location_header(f"/runs/{RUN_ID}/chat/{SESSION_ID}/{TURN_ID}")
)
@blueprint.doc(operationId="chat")
@blueprint.leads_to(
    "getChat",
    "deleteChat",
    run_id="$request.path.run_id",
    session_id="$response.body#/session_id",
)
@blueprint.leads_to(
    "getChatReply",
    run_id="$request.path.run_id",
    session_id="$response.body#/session_id",
    request_id="$response.body#/request_id",
)
@blueprint.fails_with(
    "RUN_NOT_FOUND", "DATA_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "CONFLICT", "UNAVAILABLE"
)
def chat(spec: ChatSpec, run_id: str) -> tuple[dict[str, object], dict[str, str]]:
    """Say something to a finished model, in a new chat or in one that goes on."""

    def resolve(_: Run) -> Resolved:
        session = _session_for(spec, run_id)
        spec_of_turn = replace(spec, session_id=session.session_id)
        return Resolved(spec=spec_of_turn, topic=session.session_id)

    found = ask(JobKind.CHAT, run_id, spec.to_json(), resolve)
    with suppress(Unavailable):  # the turn is queued: its worker writes it down in any case
        turn = Turn(request_id=found.request_id, message=spec.message)
        current.service(ChatSessions).announce(str(found.topic), turn)
    location = f"/runs/{run_id}/chat/{found.topic}/{found.request_id}"
    return _shown(found), {"Location": location}


@blueprint.route("/runs/<id:run_id>/chat/<id:session_id>/<id:request_id>")
@blueprint.response(200, ChatReplySchema)
@blueprint.doc(operationId="getChatReply")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def get_chat_reply(run_id: str, session_id: str, request_id: str) -> dict[str, object]:
    """Tell what a model answered."""
    found = find(JobKind.CHAT, run_id, request_id)
    session = _session(run_id, session_id)
    if found.topic != session.session_id:
        raise DataNotFound(f"{request_id}: {session_id} has no such turn")
    return _shown(found)


@blueprint.route("/runs/<id:run_id>/chat/<id:session_id>")
@blueprint.response(200, ChatHistorySchema)
@blueprint.doc(operationId="getChat")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def get_chat(run_id: str, session_id: str) -> dict[str, object]:
    """Tell what was said in a chat so far."""
    session = _session(run_id, session_id)
    messages = [
        {"role": role, "content": content}
        for turn in session.turns
        for role, content in ((USER, turn.message), (ASSISTANT, turn.response))
        if content is not None
    ]
    return {
        "session_id": session.session_id,
        "run_id": session.run_id,
        "messages": messages,
        "created_at": session.created_at,
    }


@blueprint.route("/runs/<id:run_id>/chat/<id:session_id>", methods=["DELETE"])
@blueprint.response(204)
@blueprint.doc(operationId="deleteChat")
@blueprint.fails_with("RUN_NOT_FOUND", "DATA_NOT_FOUND", "UNAVAILABLE")
def delete_chat(run_id: str, session_id: str) -> Response:
    """Stop what the model writes, and forget the chat."""
    _session(run_id, session_id)
    # Should Redis fail below, the session is still there, and can be deleted again.
    stopped = requests.forget(current.database(), JobKind.CHAT, run_id, session_id)
    for job_id, attempt in stopped.items():
        current.queue().announce_cancel(job_id, Wish(up_to=attempt))
    current.service(ChatSessions).forget(session_id)
    return Response(status=204)


def _session(run_id: str, session_id: str) -> ChatSession:
    runs.get(current.database(), run_id)
    return current.service(ChatSessions).get(run_id, session_id)


def _session_for(spec: ChatSpec, run_id: str) -> ChatSession:
    sessions = current.service(ChatSessions)
    if spec.session_id is None:
        return sessions.begin(run_id)
    session = sessions.get(run_id, spec.session_id)
    if len(session.turns) >= MAX_TURNS:
        raise Conflict(f"{session.session_id} has {MAX_TURNS} turns, the most: begin another chat")
    return session


def _shown(found: Request) -> dict[str, object]:
    return {"session_id": found.topic, **shown(found, ChatReplySchema, "response")}
