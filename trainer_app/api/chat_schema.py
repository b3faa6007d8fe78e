"""What is said to a model, and what the chat routes answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from marshmallow import Schema, fields, post_load

from trainer_app.api import examples, job_fields, sampling_fields
from trainer_app.api.fields import StrictString, about, length, one_of
from trainer_app.api.ids import PATTERN
from trainer_app.api.schema import RequestSchema, StrictSchema, id_of_request
from trainer_app.core.chat_spec import LONGEST_MESSAGE, ChatSpec

USER: Final = "user"
ASSISTANT: Final = "assistant"
_DEFAULTS: Final = asdict(ChatSpec(message=""))


class ChatSchema(StrictSchema):
    """The body of POST /runs/{run_id}/chat."""

    message = StrictString(
        required=True,
        validate=length(1, LONGEST_MESSAGE),
        metadata=about("What to say.", examples.QUESTION),
    )
    session_id = StrictString(
        load_default=None,
        allow_none=True,
        validate=length(1, 128),
        metadata=about("The chat to go on with; null: begin one.") | {"pattern": f"^{PATTERN}$"},
    )
    max_new_tokens = sampling_fields.max_new_tokens(_DEFAULTS["max_new_tokens"])
    temperature = sampling_fields.temperature(_DEFAULTS["temperature"])
    top_k = sampling_fields.top_k(_DEFAULTS["top_k"])
    top_p = sampling_fields.top_p(_DEFAULTS["top_p"])
    seed = job_fields.seed("The same seed gives the same answer; null: another each time.")

    @post_load
    def to_spec(self, data: dict[str, object], **_: object) -> ChatSpec:
        """The spec."""
        return ChatSpec.from_fields(data)


class ChatReplySchema(RequestSchema):
    """A turn of a chat; the response is null until it is completed."""

    request_id = id_of_request(examples.TURN_ID)
    session_id = fields.String(required=True, metadata=about("The chat's id.", examples.SESSION_ID))
    response = fields.String(
        required=True, allow_none=True, metadata=about("The answer.", examples.ANSWER)
    )


class ChatMessageSchema(Schema):
    """One message of a chat."""

    role = fields.String(
        required=True,
        validate=one_of((USER, ASSISTANT)),
        metadata=about("Who said it.", USER),
    )
    content = fields.String(required=True, metadata=about("What was said.", examples.QUESTION))


class ChatHistorySchema(Schema):
    """A chat and what was said in it so far."""

    session_id = fields.String(required=True, metadata=about("The chat's id.", examples.SESSION_ID))
    run_id = fields.String(
        required=True, metadata=about("The run whose model answers.", examples.RUN_ID)
    )
    messages = fields.List(
        fields.Nested(ChatMessageSchema),
        required=True,
        metadata=about(
            "Oldest first.",
            [
                {"role": USER, "content": examples.QUESTION},
                {"role": ASSISTANT, "content": examples.ANSWER},
            ],
        ),
    )
    created_at = fields.Float(
        required=True, metadata=about("When it was begun, in unix seconds.", examples.COMPLETED_AT)
    )
