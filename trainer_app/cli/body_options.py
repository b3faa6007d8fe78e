"""Command-line options made from the API's own schemas: a new field needs no second place."""

from __future__ import annotations

from inspect import Parameter
from typing import Annotated, Final

import typer
from marshmallow import Schema, fields, missing, validate
from rich.markup import escape

_PYTHON_TYPES: Final = (
    (fields.Boolean, bool | None),
    (fields.Integer, int | None),
    (fields.Float, float | None),
    (fields.List, list[str] | None),
)


def body_options(schema: Schema) -> list[Parameter]:
    """One keyword-only parameter a field, as typer reads them; what is not given is None.

    The server knows the defaults and checks the values.
    """
    return [_option(name, field) for name, field in schema.load_fields.items()]


def _option(name: str, field: fields.Field[object]) -> Parameter:
    option = typer.Option(help=escape(_help(field)), show_default=False, rich_help_panel="Request")
    annotation = next(
        (chosen for kind, chosen in _PYTHON_TYPES if isinstance(field, kind)), str | None
    )
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )


def _help(field: fields.Field[object]) -> str:
    description = str(field.metadata.get("description", ""))
    facts = [*_limits(field), *_default(field)]
    return f"{description} ({'; '.join(facts)})" if facts else description


def _limits(field: fields.Field[object]) -> list[str]:
    found = []
    for validator in field.validators:
        if isinstance(validator, validate.OneOf):
            found.append(", ".join(map(str, validator.choices)))
        elif isinstance(validator, validate.Range):
            found.append(f"{validator.min} to {validator.max}")
    return found


def _default(field: fields.Field[object]) -> list[str]:
    if field.required:
        return ["required"]
    default = field.load_default
    return [] if default in (None, missing, list) else [f"default {default}"]
