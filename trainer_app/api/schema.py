"""The schemas that others build on: strict input, the error body, pages of a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, TypedDict

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema
from marshmallow.schema import Schema as AnySchema

from trainer_app.api import examples
from trainer_app.api.errors import STATUSES, Detail
from trainer_app.api.fields import QueryInteger, StrictString, about, between, name_of
from trainer_app.api.rules import Rule, exactly_one
from trainer_app.store.pages import CURSOR
from trainer_app.store.tables import Status

_MAX_DETAILS: Final = 20  # a body of a million unknown keys is answered briefly
_UNKNOWN: Final = "unknown field"


class StrictSchema(Schema):
    """Input; unknown fields are refused."""

    class Meta:
        unknown = RAISE

    # Of two texts that name the same thing exactly one must be given.
    either: ClassVar[tuple[str, str] | None] = None
    # What else fields must agree on, for the OpenAPI document.
    rules: ClassVar[tuple[Rule, ...]] = ()

    error_messages = {  # noqa: RUF012  marshmallow reads it from the class
        "unknown": _UNKNOWN,
        "type": "the body must be a JSON object",
    }

    @validates_schema
    def check_either(self, data: Mapping[str, object], **_: object) -> None:
        """Raise ValidationError at the first of the two, of which exactly one must be given."""
        if self.either is not None:
            first, second = self.either
            if (data[first] is None) == (data[second] is None):
                raise ValidationError({first: [f"exactly one of {first} and {second} is needed"]})

    @classmethod
    def documented_rules(cls) -> list[Rule]:
        """What a JSON Schema of the single fields leaves out."""
        return [*([exactly_one(*cls.either)] if cls.either else ()), *cls.rules]


class EmptySchema(StrictSchema):
    """No field at all; a body of it may be left out."""


class PageQuerySchema(StrictSchema):
    """Which part of a list is asked for."""

    limit = QueryInteger(
        load_default=50, validate=between(1, 1_000), metadata=about("Most items to return.")
    )
    after = StrictString(
        load_default=None,
        metadata=about("The `next` of the page before.") | {"pattern": f"^{CURSOR}$"},
    )


class PageQuery(TypedDict):
    """What PageQuerySchema loads."""

    limit: int
    after: str | None


def page_of(item: type[Schema]) -> type[Schema]:
    """The schema of one page of a list of such items."""
    page = Schema.from_dict(
        {
            "data": fields.List(
                fields.Nested(item),
                required=True,
                attribute="items",
                metadata=about("Its items, newest first."),
            ),
            "has_more": fields.Boolean(
                required=True, metadata=about("Whether another page follows.", False)
            ),
            "next": fields.String(
                required=True,
                allow_none=True,
                metadata=about("The `after` of the next page; null at the end."),
            ),
        },
        name=item.__name__.removesuffix("Schema") + "PageSchema",
    )
    page.__doc__ = "One page of a list."
    return page


def id_of_request(example: str) -> fields.String:
    """The id of a request to a finished run."""
    return fields.String(required=True, metadata=about("The request's id.", example))


class RequestSchema(Schema):
    """What the requests to a finished run answer, beside what they give."""

    request_id = id_of_request(examples.GENERATE_ID)
    status = fields.String(
        required=True,
        metadata=about("Where it stands.", "completed") | {"enum": [str(word) for word in Status]},
    )
    error = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            "Why it failed, or that its row in the database is damaged: a code and a sentence; "
            "null: neither."
        ),
    )


class DetailSchema(Schema):
    """What is wrong with one field."""

    field = fields.String(required=True, metadata=about("The field's name.", "max_seq_len"))
    message = fields.String(
        required=True, metadata=about("What is wrong.", "7 is not within 8 to 65536")
    )


class ErrorSchema(Schema):
    """What every error answers."""

    code = fields.String(
        required=True,
        metadata=about("What happened, for programs.", "RUN_NOT_FOUND") | {"enum": list(STATUSES)},
    )
    message = fields.String(
        required=True, metadata=about("What happened, for people.", "no run has this id")
    )
    request_id = fields.String(
        required=True, metadata=about("The request's id, as in the log.", examples.HTTP_REQUEST_ID)
    )
    details = fields.List(
        fields.Nested(DetailSchema), metadata=about("One entry for each bad field.")
    )


def details_of(messages: object, schema: AnySchema) -> list[Detail]:
    """marshmallow's nested messages as a flat list, with a suggestion for unknown fields."""
    found = []
    for path, message in _flatten(messages, ()):
        text = _suggest(path, schema) if message == _UNKNOWN else message
        found.append(Detail(".".join(path) or "body", text))
        if len(found) == _MAX_DETAILS:
            break
    return found


def _flatten(messages: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            step = () if name == "_schema" else (name_of(name),)
            yield from _flatten(inner, path + step)
    else:
        assert isinstance(messages, list)
        for message in messages:
            yield path, str(message)


def _suggest(path: tuple[str, ...], schema: AnySchema) -> str:
    close = difflib.get_close_matches(path[-1], schema.load_fields, n=1)
    return f"{_UNKNOWN}; did you mean {close[0]!r}?" if close else _UNKNOWN
