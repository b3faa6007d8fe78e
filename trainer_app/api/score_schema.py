"""What a model is asked to score, and what the score routes answer."""

from __future__ import annotations

from typing import Final

from marshmallow import Schema, fields, post_load

from trainer_app.api import examples, job_fields
from trainer_app.api.fields import (
    LONGEST_PATH,
    LONGEST_TEXT,
    OF_BODY,
    StrictInteger,
    StrictString,
    about,
    between,
    length,
    one_of,
)
from trainer_app.api.schema import RequestSchema, StrictSchema, id_of_request
from trainer_app.core.score_spec import (
    DETAIL_LEVELS,
    MAX_CANDIDATES,
    MAX_DETAILED_TOKENS,
    MAX_TOP_K,
    ScoreSpec,
)

_PREDICTED: Final = "Entry i is about token i + 2 of the text, counted from 1."


class ScoreSchema(StrictSchema):
    """The body of POST /runs/{run_id}/score."""

    either = ("text", "path")

    text = StrictString(
        load_default=None,
        validate=length(1, LONGEST_TEXT),
        metadata=about(f"What to score; this or path. {OF_BODY}", examples.PROMPT),
    )
    path = StrictString(
        load_default=None,
        validate=length(1, LONGEST_PATH),
        metadata=about("A file under the corpus root; this or text.", "tales/king.txt"),
    )
    detail_level = StrictString(
        load_default="summary",
        validate=one_of(DETAIL_LEVELS),
        metadata=about(
            "per_char: also each token and its surprisal, for a text of at most "
            f"{MAX_DETAILED_TOKENS} tokens.",
            "per_char",
        ),
    )
    top_k = StrictInteger(
        load_default=None,
        allow_none=True,
        validate=between(1, MAX_TOP_K),
        metadata=about(
            "Tell so many of the likeliest tokens at each place; null: none. At most "
            f"{MAX_CANDIDATES} in all.",
            1,
        ),
    )
    seed = job_fields.seed("Taken and of no effect: a score draws no random number.")

    @post_load
    def to_request(self, data: dict[str, object], **_: object) -> tuple[ScoreSpec, str | None]:
        """The spec, and the path of the file that its text is yet to be read from."""
        path = data.pop("path")
        spec = ScoreSpec.from_fields({**data, "text": data["text"] or ""})
        return spec, None if path is None else str(path)


class CandidateSchema(Schema):
    """One of the likeliest tokens at a place."""

    token = fields.String(required=True, metadata=about("As a person would read it.", " time"))
    token_id = fields.Integer(required=True, metadata=about("Its id.", 402))
    probability = fields.Float(required=True, metadata=about("Its probability.", 0.66))
    bits = fields.Float(required=True, metadata=about("Its surprisal.", 0.6))


class ScoringSchema(RequestSchema):
    """A request to score; what it gave is null until it is completed."""

    request_id = id_of_request(examples.SCORE_ID)
    loss = fields.Float(
        required=True, allow_none=True, metadata=about("Mean nats per predicted token.", 1.317)
    )
    perplexity = fields.Float(
        required=True, allow_none=True, metadata=about("The exponential of the loss.", 3.732)
    )
    surprisal = fields.List(
        fields.Float(),
        required=True,
        allow_none=True,
        metadata=about(
            f"Bits of each predicted token; with per_char alone. {_PREDICTED}", [3.9, 1.2, 0.6]
        ),
    )
    topk = fields.List(
        fields.List(fields.Nested(CandidateSchema)),
        required=True,
        allow_none=True,
        metadata=about(
            f"The likeliest tokens, with top_k alone. {_PREDICTED}",
            [
                [{"token": ",", "token_id": 15, "probability": 0.11, "bits": 3.18}],
                [{"token": " a", "token_id": 263, "probability": 0.435, "bits": 1.2}],
                [{"token": " time", "token_id": 402, "probability": 0.66, "bits": 0.6}],
            ],
        ),
    )
    tokens = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=about(
            "All tokens of the text, with per_char alone; bytes that are part of a character "
            "as \\xe2.",
            ["Once", " upon", " a", " time"],
        ),
    )
