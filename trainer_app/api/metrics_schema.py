"""The curve of a run, and which part of it is asked for."""

from __future__ import annotations

from marshmallow import Schema, fields

from trainer_app.api import examples
from trainer_app.api.fields import QueryInteger, about, between
from trainer_app.api.schema import StrictSchema


class CurveQuerySchema(StrictSchema):
    """How many points of a curve."""

    points = QueryInteger(
        load_default=None,
        validate=between(2, 100_000),
        metadata=about("Thin the curve to about so many points; all without it."),
    )


class PointSchema(Schema):
    """One step of the curve; null: not measured there."""

    step = fields.Integer(required=True, metadata=about("Optimizer steps done.", 114))
    epoch = fields.Integer(required=True, metadata=about("From 0.", 1))
    train_loss = fields.Float(
        required=True, allow_none=True, metadata=about("Nats per predicted token.", 3.8712)
    )
    val_loss = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Nats per predicted token, where an evaluation was.", 3.9021),
    )
    learning_rate = fields.Float(
        required=True, allow_none=True, metadata=about("As the schedule had it.", 0.000141)
    )
    grad_norm = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Before clipping; null: fp16 overflowed and skipped the step.", 0.7315),
    )
    tokens_per_sec = fields.Float(
        required=True, allow_none=True, metadata=about("Tokens trained on in a second.", 18_253.0)
    )
    step_ms = fields.Float(
        required=True, allow_none=True, metadata=about("Milliseconds that a step took.", 224.4)
    )
    mfu = fields.Float(
        required=True,
        allow_none=True,
        metadata=about(
            "Model FLOPs utilisation, 0 to 1; null: on a CPU, or a GPU whose peak is not known.",
            0.31,
        ),
    )
    attempt = fields.Integer(required=True, metadata=about("Which attempt measured it, from 1.", 1))
    chain = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "SHA-256 over the one before, this step and its training loss.",
            examples.LOSS_CHAIN,
        ),
    )


class CurveSchema(Schema):
    """A run's curve, in order of steps."""

    run_id = fields.String(required=True, metadata=about("The run's id.", examples.RUN_ID))
    points = fields.List(
        fields.Nested(PointSchema), required=True, metadata=about("In order of steps.")
    )
