"""What a model is asked to write, and what the generate routes answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from marshmallow import fields, post_load

from trainer_app.api import examples, job_fields, sampling_fields
from trainer_app.api.fields import (
    EMPTY_BY_DEFAULT,
    LONGEST_PATH,
    LONGEST_TEXT,
    OF_BODY,
    StrictBoolean,
    StrictInteger,
    StrictList,
    StrictString,
    about,
    between,
    length,
)
from trainer_app.api.schema import RequestSchema, StrictSchema
from trainer_app.core.generation_spec import MAX_RETURN_SEQUENCES, GenerateSpec

_DEFAULTS: Final = asdict(GenerateSpec(prompt_text=""))


class GenerateSchema(StrictSchema):
    """The body of POST /runs/{run_id}/generate."""

    either = ("prompt_text", "prompt_path")

    prompt_text = StrictString(
        load_default=None,
        validate=length(0, LONGEST_TEXT),
        metadata=about(f"What to continue; this or prompt_path. {OF_BODY}", examples.PROMPT),
    )
    prompt_path = StrictString(
        load_default=None,
        validate=length(1, LONGEST_PATH),
        metadata=about("A file under the corpus root; this or prompt_text.", "prompts/tale.txt"),
    )
    max_new_tokens = sampling_fields.max_new_tokens(_DEFAULTS["max_new_tokens"])
    temperature = sampling_fields.temperature(_DEFAULTS["temperature"])
    top_k = sampling_fields.top_k(_DEFAULTS["top_k"])
    top_p = sampling_fields.top_p(_DEFAULTS["top_p"])
    stop_on_eos = StrictBoolean(
        load_default=_DEFAULTS["stop_on_eos"], metadata=about("Stop at the end of a text.")
    )
    stop_sequences = StrictList(
        StrictString(validate=length(1, 256)),
        load_default=list,
        validate=length(0, 16),
        metadata=about(
            "Texts to stop before; they are cut off. A part of one, at which max_new_tokens ends "
            "the text, is not.",
            ["\n\n"],
        )
        | EMPTY_BY_DEFAULT,
    )
    seed = job_fields.seed("The same seed gives the same text; null: another each time.")
    num_return_sequences = StrictInteger(
        load_default=_DEFAULTS["num_return_sequences"],
        validate=between(1, MAX_RETURN_SEQUENCES),
        metadata=about("How many continuations."),
    )

    @post_load
    def to_request(self, data: dict[str, object], **_: object) -> tuple[GenerateSpec, str | None]:
        """The spec, and the path of the file that its prompt is yet to be read from."""
        path = data.pop("prompt_path")
        spec = GenerateSpec.from_fields({**data, "prompt_text": data["prompt_text"] or ""})
        return spec, None if path is None else str(path)


class GenerationSchema(RequestSchema):
    """A request to generate; what it gave is null until it is completed."""

    outputs = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=about("The continuations, without the prompt.", [" there was a king."]),
    )
    steps = fields.Integer(required=True, allow_none=True, metadata=about("New tokens in all.", 6))
    eos_terminated = fields.List(
        fields.Boolean(),
        required=True,
        allow_none=True,
        metadata=about("For each continuation, whether the model ended it.", [True]),
    )
