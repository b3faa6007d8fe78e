"""What the corpus routes answer."""

from __future__ import annotations

from marshmallow import Schema, fields

from trainer_app.api import examples
from trainer_app.api.fields import about
from trainer_app.api.schema import page_of


class CorpusSchema(Schema):
    """One uploaded text."""

    file_id = fields.String(
        required=True, metadata=about("The SHA-256 of the bytes, in hex.", examples.CORPUS_ID)
    )
    bytes = fields.Integer(required=True, metadata=about("Its size.", 1_115_394))
    lines = fields.Integer(required=True, metadata=about("Its lines.", 40_000))
    created_at = fields.Float(
        required=True,
        metadata=about("When it was first uploaded, in unix seconds.", examples.UPLOADED_AT),
    )


CorpusPageSchema = page_of(CorpusSchema)
