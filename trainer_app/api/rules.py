"""What the fields of a body must agree on, in the words of the OpenAPI document.

Each is a JSON Schema of ``if`` and ``then``, which generators of clients pass over: a ``oneOf``
would make a class of its own of each case. What is said here is checked by the schema's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Rule = dict[str, object]

_NULL: Final[Rule] = {"type": "null"}
_TEXT: Final[Rule] = {"type": "string"}


def exactly_one(first: str, second: str) -> Rule:
    """One of two texts is given, the other is null or left out."""
    return {
        "if": _given(first, _TEXT),
        "then": {"properties": {second: _NULL}},
        "else": _given(second, _TEXT),
    }


def where(field: str, value: object, *then: Rule, is_default: bool = False) -> Rule:
    """Where a field has this value, given or by default, all that follows holds."""
    const: Rule = {"const": value}
    condition: Rule = {"properties": {field: const}} if is_default else _given(field, const)
    return {"if": condition, "then": {"allOf": list(then)}}


def with_text(field: str) -> Rule:
    """A text is given."""
    return _given(field, _TEXT)


def among(field: str, choices: Sequence[str]) -> Rule:
    """A field is one of these, or is left out."""
    return {"properties": {field: {"enum": list(choices)}}}


def below(field: str, limit: float) -> Rule:
    """A number is less than the limit, or is left out."""
    return {"properties": {field: {"exclusiveMaximum": limit}}}


def at_least(field: str, limit: int) -> Rule:
    """A number is not less than the limit, or is left out."""
    return {"properties": {field: {"minimum": limit}}}


def _given(field: str, schema: Rule) -> Rule:
    return {"required": [field], "properties": {field: schema}}
