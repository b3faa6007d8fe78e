"""The curve of a run, and which part of it is asked for."""

from __future__ import annotations

from marshmallow import Schema, fields

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

    step = fields.Integer(required=True, metadata=about("Optimizer steps done."))
    epoch = fields.Integer(required=True, metadata=about("From 0."))
    train_loss = fields.Float(
        required=True, allow_none=True, metadata=about("Nats per predicted token.")
    )
    val_loss = fields.Float(
        required=True, allow_none=True, metadata=about("Nats per predicted token.")
    )
    learning_rate = fields.Float(required=True, allow_none=True)
    grad_norm = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Before clipping; null: fp16 overflowed and skipped the step."),
    )
    tokens_per_sec = fields.Float(required=True, allow_none=True)
    step_ms = fields.Float(
        required=True, allow_none=True, metadata=about("Milliseconds that a step took.")
    )
    mfu = fields.Float(
        required=True,
        allow_none=True,
        metadata=about(
            "Model FLOPs utilisation, 0 to 1; null: on a CPU, or a GPU whose peak is not known."
        ),
    )
    attempt = fields.Integer(required=True, metadata=about("Which attempt measured it."))
    chain = fields.String(
        required=True,
        allow_none=True,
        metadata=about("SHA-256 over the one before, this step and its training loss."),
    )


class CurveSchema(Schema):
    """A run's curve, in order of steps."""

    run_id = fields.String(required=True, metadata=about("The run's id."))
    points = fields.List(fields.Nested(PointSchema), required=True)
