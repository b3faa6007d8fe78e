"""What the artifact route answers."""

from __future__ import annotations

from marshmallow import Schema, fields

from trainer_app.api.fields import about


class ArtifactFileSchema(Schema):
    """One file of an artifact."""

    name = fields.String(required=True, metadata=about("Its name.", "model.safetensors"))
    bytes = fields.Integer(required=True, metadata=about("Its size."))
    sha256 = fields.String(required=True, metadata=about("Its digest, in hex."))


class PointerSchema(Schema):
    """Where a finished model is and what it consists of."""

    storage = fields.String(
        required=True, metadata=about("Where it is.") | {"enum": ["local", "data-bank"]}
    )
    file_id = fields.String(
        required=True, allow_none=True, metadata=about("Its id in the data bank.")
    )
    sha256 = fields.String(
        required=True, metadata=about("Of manifest.json, which holds the digests of the rest.")
    )
    files = fields.List(fields.Nested(ArtifactFileSchema), required=True)
