"""What the run routes answer, and which runs a list can be asked for."""

from __future__ import annotations

from marshmallow import Schema, fields

from backends.registry import MODEL_FAMILIES
from trainer_app.api import examples
from trainer_app.api.fields import (
    INT64_MAX,
    QueryInteger,
    StrictString,
    about,
    between,
    length,
    one_of,
)
from trainer_app.api.rules import Rule
from trainer_app.api.schema import PageQuerySchema, page_of
from trainer_app.api.train_schema import TrainSchema
from trainer_app.errors import RUN_CODES
from trainer_app.store.tables import Status


class _Digest(fields.String):
    """A digest that may not be known yet."""

    def _serialize(
        self, value: str | None, attr: str | None, obj: object, **kwargs: object
    ) -> str | None:
        return super()._serialize(value or None, attr, obj, **kwargs)


class ResolvedSpecSchema(TrainSchema):
    """The whole request as resolved.

    `device`, `precision`, `torch_compile`, `data_num_workers` and `data_pin_memory` are those that
    its last attempt trains with, once it has resolved them, and as asked for until then.
    `torch_compile` stays `auto` on CUDA where it is decided as the run goes.
    """

    corpus_sha256 = _Digest(
        required=True,
        allow_none=True,
        metadata=about(
            "Of the corpus as it was when the run was posted; null: the data bank did not answer "
            "then, and the worker is yet to ask it.",
            examples.CORPUS_ID,
        ),
    )

    @classmethod
    def documented_rules(cls) -> list[Rule]:
        """None: they are a request's, and what was taken is shown as it was taken."""
        return []


class RunAcceptedSchema(Schema):
    """A run that is queued."""

    run_id = fields.String(required=True, metadata=about("The run's id.", examples.RUN_ID))
    job_id = fields.String(
        required=True, metadata=about("The same id, as events name it.", examples.RUN_ID)
    )


class RunSchema(Schema):
    """Where a run stands. Times are unix seconds, losses mean nats per predicted token."""

    run_id = fields.String(required=True, metadata=about("The run's id.", examples.RUN_ID))
    status = fields.String(
        required=True,
        metadata=about("Where it stands.", "completed") | {"enum": [str(word) for word in Status]},
    )
    last_heartbeat_ts = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Its worker's last sign of life.", examples.COMPLETED_AT),
    )
    message = fields.String(
        required=True,
        metadata=about("What it does or waits for, or why it ended; empty: nothing to add.", ""),
    )
    paused = fields.Boolean(
        required=True,
        metadata=about("Held back until it is resumed; queued once it has stopped.", False),
    )
    attempt = fields.Integer(
        required=True, metadata=about("How often a worker has started or resumed it.", 1)
    )
    progress = fields.Integer(
        required=True, metadata=about("Percent.", 100) | {"minimum": 0, "maximum": 100}
    )
    epoch = fields.Integer(required=True, metadata=about("The present epoch, from 0.", 2))
    step = fields.Integer(required=True, metadata=about("Optimizer steps done.", examples.STEPS))
    total_steps = fields.Integer(
        required=True,
        allow_none=True,
        metadata=about("Steps in all, once known.", examples.STEPS),
    )
    train_loss = fields.Float(
        required=True, allow_none=True, metadata=about("The last one.", 3.6124)
    )
    val_loss = fields.Float(required=True, allow_none=True, metadata=about("The last one.", 3.6987))
    tokens_per_sec = fields.Float(
        required=True, allow_none=True, metadata=about("Its speed.", 18_253.0)
    )
    eta_sec = fields.Float(
        required=True, allow_none=True, metadata=about("Seconds until it should be done.")
    )
    loss_chain = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "What the hashes over steps and training losses come to at the newest checkpoint; "
            "null: none is kept. Of the end of a completed run its manifest has it.",
            examples.LOSS_CHAIN,
        ),
    )
    loss_chain_step = fields.Integer(
        required=True,
        allow_none=True,
        metadata=about("The step of that checkpoint: the curve reaches it.", 120),
    )
    queue_position = fields.Integer(
        required=True, allow_none=True, metadata=about("How many start before it; null: none wait.")
    )
    created_at = fields.Float(
        required=True, metadata=about("When it was posted.", examples.POSTED_AT)
    )
    started_at = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("When a worker first took it.", examples.STARTED_AT),
    )
    completed_at = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("When it reached its final status.", examples.COMPLETED_AT),
    )
    error_code = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "Why it failed; of a completed run: not uploaded. "
            + " ".join(f"{code}: {meaning}" for code, meaning in RUN_CODES.items())
        )
        | {"enum": [*RUN_CODES, None]},
    )
    spec = fields.Nested(
        ResolvedSpecSchema,
        required=True,
        allow_none=True,
        attribute="asked",
        metadata={"description": "Null: its row in the database is damaged."},
    )


RunPageSchema = page_of(RunSchema)


class RunQuerySchema(PageQuerySchema):
    """Which runs are asked for."""

    status = StrictString(
        load_default=None,
        validate=one_of([str(word) for word in Status]),
        metadata=about("Runs of this status alone."),
    )
    model_family = StrictString(
        load_default=None,
        validate=one_of(tuple(MODEL_FAMILIES)),
        metadata=about("Runs of this family alone."),
    )
    user_id = QueryInteger(
        load_default=None,
        validate=between(0, INT64_MAX),
        metadata=about("Runs of this user alone."),
    )
    tag = StrictString(
        load_default=None, validate=length(1, 64), metadata=about("Runs with this tag alone.")
    )


class MovedSchema(Schema):
    """A run that was paused or resumed."""

    run_id = fields.String(required=True, metadata=about("The run's id.", examples.RUN_ID))
    status = fields.String(
        required=True,
        metadata=about(
            "Where it stands now: a running one that is paused stops at its next step.", "queued"
        )
        | {"enum": [str(Status.QUEUED), str(Status.RUNNING)]},
    )


class CancelSchema(Schema):
    """A cancellation that has been asked for."""

    status = fields.String(
        required=True,
        metadata=about("That it has been asked for.", "cancellation-requested")
        | {"enum": ["cancellation-requested"]},
    )
