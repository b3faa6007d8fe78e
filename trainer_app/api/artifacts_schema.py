"""What the artifact route answers."""

from __future__ import annotations

from marshmallow import Schema, fields

from trainer_app.api import examples
from trainer_app.api.fields import about


class ArtifactFileSchema(Schema):
    """One file of an artifact."""

    name = fields.String(required=True, metadata=about("Its name.", "model.safetensors"))
    bytes = fields.Integer(required=True, metadata=about("Its size.", 13_914_112))
    sha256 = fields.String(
        required=True, metadata=about("Its digest, in hex.", examples.WEIGHTS_SHA256)
    )


class PointerSchema(Schema):
    """Where a finished model is and what it consists of."""

    storage = fields.String(
        required=True, metadata=about("Where it is.", "local") | {"enum": ["local", "data-bank"]}
    )
    file_id = fields.String(
        required=True, allow_none=True, metadata=about("Its id in the data bank; null: not there.")
    )
    sha256 = fields.String(
        required=True,
        metadata=about(
            "Of manifest.json, which holds the digests of the rest.", examples.MANIFEST_SHA256
        ),
    )
    files = fields.List(
        fields.Nested(ArtifactFileSchema),
        required=True,
        metadata=about(
            "All of them, manifest.json included.",
            [
                {"name": "manifest.json", "bytes": 6_120, "sha256": examples.MANIFEST_SHA256},
                {
                    "name": "model.safetensors",
                    "bytes": 13_914_112,
                    "sha256": examples.WEIGHTS_SHA256,
                },
            ],
        ),
    )
