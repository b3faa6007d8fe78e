"""What a model is asked to write, and what the generate routes answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from marshmallow import Schema, ValidationError, fields, post_load, validates_schema

from trainer_app.api.fields import (
    UINT32_MAX,
    StrictBoolean,
    StrictInteger,
    StrictNumber,
    StrictString,
    about,
    between,
    length,
)
from trainer_app.api.schema import StrictSchema
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.safe_paths import MAX_NAME_LENGTH
from trainer_app.store.tables import Status

_DEFAULTS: Final = asdict(GenerateSpec(prompt_text=""))
LONGEST_PROMPT: Final = 1_048_576  # characters of a text, bytes of a file


class GenerateSchema(StrictSchema):
    """The body of POST /runs/{run_id}/generate."""

    prompt_text = StrictString(
        load_default=None,
        validate=length(0, LONGEST_PROMPT),
        metadata=about("What to continue; this or prompt_path.", "Once upon a time"),
    )
    prompt_path = StrictString(
        load_default=None,
        validate=length(1, MAX_NAME_LENGTH),
        metadata=about("A file under the corpus root; this or prompt_text.", "prompts/tale.txt"),
    )
    max_new_tokens = StrictInteger(
        load_default=_DEFAULTS["max_new_tokens"],
        validate=between(1, 1_024),
        metadata=about("Most tokens to add."),
    )
    temperature = StrictNumber(
        load_default=_DEFAULTS["temperature"],
        validate=between(0, 2),
        metadata=about("0: always the most likely token."),
    )
    top_k = StrictInteger(
        load_default=_DEFAULTS["top_k"],
        validate=between(0, 1_000_000),
        metadata=about("Choose among this many tokens; 0: among all."),
    )
    top_p = StrictNumber(
        load_default=_DEFAULTS["top_p"],
        validate=between(0, 1),
        metadata=about("Choose among the likeliest tokens of this much probability; 1: all."),
    )
    stop_on_eos = StrictBoolean(
        load_default=_DEFAULTS["stop_on_eos"], metadata=about("Stop at the end of a text.")
    )
    stop_sequences = fields.List(
        StrictString(validate=length(1, 256)),
        load_default=list,
        validate=length(0, 16),
        metadata=about("Texts to stop before; they are cut off.", ["\n\n"]),
    )
    seed = StrictInteger(
        load_default=None,
        validate=between(0, UINT32_MAX),
        metadata=about("The same seed gives the same text; null: another each time."),
    )
    num_return_sequences = StrictInteger(
        load_default=_DEFAULTS["num_return_sequences"],
        validate=between(1, 16),
        metadata=about("How many continuations."),
    )

    @validates_schema
    def check(self, data: Mapping[str, object], **_: object) -> None:
        """Exactly one prompt."""
        if (data["prompt_text"] is None) == (data["prompt_path"] is None):
            raise ValidationError(
                {"prompt_text": ["exactly one of prompt_text and prompt_path is needed"]}
            )

    @post_load
    def to_request(self, data: dict[str, object], **_: object) -> tuple[GenerateSpec, str | None]:
        """The spec, and the path of the file that its prompt is yet to be read from."""
        path = data.pop("prompt_path")
        spec = GenerateSpec.from_json(
            json.dumps({**data, "prompt_text": data["prompt_text"] or ""})
        )
        return spec, None if path is None else str(path)


class GenerationSchema(Schema):
    """A request to generate; what it gave is null until it is completed."""

    request_id = fields.String(required=True, metadata=about("The request's id."))
    status = fields.String(
        required=True, metadata=about("Where it stands.") | {"enum": [str(word) for word in Status]}
    )
    outputs = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=about("The continuations, without the prompt.", [" there was a king."]),
    )
    steps = fields.Integer(required=True, allow_none=True, metadata=about("New tokens in all."))
    eos_terminated = fields.List(
        fields.Boolean(),
        required=True,
        allow_none=True,
        metadata=about("For each continuation, whether the model ended it."),
    )
    error = fields.String(required=True, allow_none=True, metadata=about("Why it failed."))
