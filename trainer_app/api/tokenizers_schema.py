"""What a tokenizer is asked for, and what the tokenizer routes answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from marshmallow import Schema, ValidationError, fields, post_load, validates_schema

from backends.registry import TOKENIZER_KINDS, TOKENIZER_MIN_VOCAB
from trainer_app.api import examples, job_fields
from trainer_app.api.fields import (
    StrictInteger,
    StrictString,
    about,
    between,
    length,
    one_of,
    shown,
)
from trainer_app.api.ids import RESERVED, id_pattern, is_new_id, new_id_pattern
from trainer_app.api.rules import at_least, where
from trainer_app.api.schema import StrictSchema, page_of
from trainer_app.core.spec import TokenizerSpec
from trainer_app.store.tables import Status

_LONGEST_NAME: Final = 64  # characters, as the database keeps them
_NAME: Final = id_pattern(_LONGEST_NAME)
_FOLDER: Final = f"{examples.ARTIFACTS}/tokenizers/{examples.TOKENIZER_ID}"
# One source for the defaults: the spec's own.
_DEFAULTS: Final = asdict(TokenizerSpec(method="", vocab_size=0, corpus_sha256=""))


class TokenizerTrainSchema(StrictSchema):
    """The body of POST /tokenizers/train."""

    either = job_fields.CORPUS
    rules = tuple(
        where("method", kind, at_least("vocab_size", least))
        for kind, least in TOKENIZER_MIN_VOCAB.items()
    )

    method = StrictString(
        required=True,
        validate=one_of(tuple(TOKENIZER_KINDS)),
        metadata=about("The kind of tokenizer.", "bpe"),
    )
    vocab_size = StrictInteger(
        required=True,
        validate=between(min(TOKENIZER_MIN_VOCAB.values()), 1_000_000),
        metadata=about(
            "The most entries that it may have. The least to ask for: "
            + ", ".join(f"{kind} {least}" for kind, least in TOKENIZER_MIN_VOCAB.items())
            + "; more than a text of the corpus's size can give is refused.",
            8_000,
        ),
    )
    min_frequency = StrictInteger(
        load_default=_DEFAULTS["min_frequency"],
        validate=between(1, 1_000_000_000),
        metadata=about("How often an entry must occur in the corpus."),
    )
    corpus_file_id = job_fields.corpus_file_id()
    corpus_path = job_fields.corpus_path()
    holdout_fraction = job_fields.held_out(
        _DEFAULTS["holdout_fraction"],
        "Of the corpus, for the statistics; 0: they are taken on what it learnt.",
    )
    seed = job_fields.seed("Chooses the held-out part.", _DEFAULTS["seed"])
    tokenizer_id = StrictString(
        load_default=None,
        validate=length(1, _LONGEST_NAME),
        metadata=about("A name of your own; null: one is made.", examples.TOKENIZER_ID)
        | {"pattern": f"^(?!{RESERVED}$){new_id_pattern(_LONGEST_NAME)}$"},
    )
    user_id = job_fields.user_id(_DEFAULTS["user_id"], "Whose tokenizer it is; a label.")

    @validates_schema
    def check(self, data: Mapping[str, object], **_: object) -> None:
        """What two fields must agree on; each message is at the field to change."""
        wrong: dict[str, list[str]] = {}
        least = TOKENIZER_MIN_VOCAB[str(data["method"])]
        size = data["vocab_size"]
        if isinstance(size, int) and size < least:
            wrong["vocab_size"] = [f"{size} is not at least {least}, which {data['method']} needs"]
        if data["tokenizer_id"] is not None and not is_new_id(str(data["tokenizer_id"])):
            name = shown(data["tokenizer_id"])
            rule = f"must match {_NAME}, contain no '..', end in no '.', be no device's name"
            wrong["tokenizer_id"] = [f"{name}: {rule}"]
        if data["tokenizer_id"] == RESERVED:
            wrong["tokenizer_id"] = [f"{RESERVED!r} is an address of its own: choose another name"]
        if wrong:
            raise ValidationError(wrong)

    @post_load
    def to_spec(self, data: dict[str, object], **_: object) -> TokenizerSpec:
        """The spec; its corpus_sha256 is known once the corpus has been read."""
        return TokenizerSpec.from_json(json.dumps({**data, "corpus_sha256": ""}))


class TokenizerAcceptedSchema(Schema):
    """A tokenizer whose training is queued."""

    tokenizer_id = fields.String(required=True, metadata=about("Its id.", examples.TOKENIZER_ID))
    artifact_path = fields.String(
        required=True, metadata=about("Where its files will lie on the server.", _FOLDER)
    )
    coverage = fields.Float(required=True, allow_none=True, metadata=about("Not known yet."))
    oov_rate = fields.Float(required=True, allow_none=True, metadata=about("Not known yet."))


class TokenizerSchema(Schema):
    """A tokenizer and what was measured on the held-out part of its corpus."""

    tokenizer_id = fields.String(required=True, metadata=about("Its id.", examples.TOKENIZER_ID))
    artifact_path = fields.String(
        required=True, metadata=about("Where its files lie on the server.", _FOLDER)
    )
    status = fields.String(
        required=True,
        metadata=about("Where it stands.", "completed") | {"enum": [str(word) for word in Status]},
    )
    method = fields.String(
        required=True, metadata=about("Its kind.", "bpe") | {"enum": list(TOKENIZER_KINDS)}
    )
    vocab_size = fields.Integer(
        required=True, allow_none=True, metadata=about("Its entries, as trained.", 8_000)
    )
    coverage = fields.Float(
        required=True, allow_none=True, metadata=about("Of the tokens, how many are known.", 1.0)
    )
    oov_rate = fields.Float(
        required=True, allow_none=True, metadata=about("Of the tokens, how many are [UNK].", 0.0)
    )
    token_count = fields.Integer(
        required=True, allow_none=True, metadata=about("Tokens of the held-out part.", 2_774)
    )
    char_coverage = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Of the characters, how many are known.", 1.0),
    )
    bytes_per_token = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Bytes of text that a token stands for.", 4.02),
    )
    error = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "Why it failed, or that its row in the database is damaged: a code and a sentence; "
            "null: neither."
        ),
    )


TokenizerPageSchema = page_of(TokenizerSchema)
