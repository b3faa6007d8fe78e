"""What the probes answer."""

from __future__ import annotations

from marshmallow import Schema, fields

from trainer_app.api.fields import about


class HealthSchema(Schema):
    """The process answers."""

    status = fields.String(required=True, metadata=about("Always ok.", "ok") | {"enum": ["ok"]})


class ReadinessSchema(Schema):
    """Whether a run that is posted now would be trained."""

    status = fields.String(
        required=True,
        metadata=about("Whether it would be.", "ready") | {"enum": ["ready", "degraded"]},
    )
    reason = fields.String(
        required=True,
        allow_none=True,
        metadata=about("What is missing; null: nothing.")
        | {"enum": ["redis-unavailable", "database-unavailable", "no-worker", None]},
    )
