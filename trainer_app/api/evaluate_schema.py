"""What a model is evaluated on, and what the evaluation routes answer."""

from __future__ import annotations

from typing import TypedDict

from marshmallow import fields, post_load

from trainer_app.api import examples
from trainer_app.api.fields import LONGEST_PATH, StrictString, about, length, one_of
from trainer_app.api.schema import RequestSchema, StrictSchema, id_of_request
from trainer_app.core.evaluate_spec import EVALUATED_SPLITS, EvaluateSpec


def _split() -> StrictString:
    return StrictString(
        load_default="validation",
        validate=one_of(EVALUATED_SPLITS),
        metadata=about("A split of the run's own corpus.", "test"),
    )


class EvaluateSchema(StrictSchema):
    """The body of POST /runs/{run_id}/evaluate."""

    split = _split()
    path_override = StrictString(
        load_default=None,
        allow_none=True,
        validate=length(1, LONGEST_PATH),
        metadata=about(
            "A text under the corpus root to evaluate on, all of it, instead of the split; what "
            "comes of it is kept under the split's name."
        ),
    )

    @post_load
    def to_spec(self, data: dict[str, object], **_: object) -> EvaluateSpec:
        """The spec, without the digest of its text."""
        return EvaluateSpec.from_fields(data)


class EvaluationQuerySchema(StrictSchema):
    """Which evaluation is asked for."""

    split = _split()


class EvaluationQuery(TypedDict):
    """What EvaluationQuerySchema loads."""

    split: str


class EvaluationSchema(RequestSchema):
    """An evaluation; what it gave is null until it is completed."""

    request_id = id_of_request(examples.EVALUATE_ID)
    run_id = fields.String(required=True, metadata=about("The run's id.", examples.RUN_ID))
    split = fields.String(
        required=True,
        metadata=about("What it is kept under.", "test") | {"enum": list(EVALUATED_SPLITS)},
    )
    path_override = fields.String(
        required=True,
        allow_none=True,
        metadata=about("The text that stood for the split; null: none."),
    )
    loss = fields.Float(
        required=True, allow_none=True, metadata=about("Mean nats per predicted token.", 3.705)
    )
    perplexity = fields.Float(
        required=True, allow_none=True, metadata=about("The exponential of the loss.", 40.65)
    )
    bits_per_byte = fields.Float(
        required=True,
        allow_none=True,
        metadata=about(
            "Bits per byte of UTF-8 text, comparable across tokenizers. Of a split, those of the "
            "[EOS] between its texts are counted, too.",
            1.33,
        ),
    )
    artifact_path = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "The file with these figures, on the server.",
            f"{examples.ARTIFACTS}/evaluations/{examples.RUN_ID}/test.json",
        ),
    )
