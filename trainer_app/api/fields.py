"""Fields that take what they say and nothing like it.

marshmallow's own read 1.9, "12", "1_000", Arabic digits and true as integers; these do not.
Every field has bounds, and the OpenAPI document shows them.

The arguments that ``_deserialize`` leaves unused are marshmallow's signature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Final

from marshmallow import ValidationError, fields, validate

if TYPE_CHECKING:
    from marshmallow.types import ErrorMessages

INT64_MAX: Final = 2**63 - 1  # what SQLite and PostgreSQL hold
UINT32_MAX: Final = 2**32 - 1  # what numpy takes for a seed
LONGEST_PATH: Final = 8_192  # characters: more than any path has, which is then just not there
OF_BODY: Final = "The whole body has a limit of its own, API__MAX_BODY_BYTES."
LONGEST_TEXT: Final = 1_048_576  # to use a model on: characters of a text, bytes of a file
_INTEGER_TEXT: Final = re.compile(r"-?[0-9]+")
_MAX_DIGITS: Final = 100  # of an integer literal; int() refuses 4,300, and takes a while before
_OUT_OF_RANGE: Final = 10**_MAX_DIGITS  # stands for a longer literal: no field takes it
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SHOWN: Final = 64  # characters of a refused value that its message repeats


class _Range(validate.Range):
    """Says both bounds, and of a long number that it is one."""

    def _format_error(self, value: object, message: str) -> str:  # noqa: ARG002
        is_stand_in = isinstance(value, int) and abs(value) >= _OUT_OF_RANGE
        told = f"a number of more than {_MAX_DIGITS} digits" if is_stand_in else shown(value)
        return f"{told} is not within {self.min} to {self.max}"


def between(low: float, high: float) -> validate.Range:
    """From ``low`` to ``high``, both allowed."""
    return _Range(low, high)


def one_of(choices: Sequence[str]) -> validate.OneOf:
    """One of the given words."""
    return validate.OneOf(choices, error="{input!r} is not one of: {choices}")


class _Length(validate.Length):
    """Says what is counted, and how much of it there is."""

    def _format_error(self, value: Sized, message: str) -> str:  # noqa: ARG002
        counted = "characters" if isinstance(value, str) else "items"
        return f"must have {self.min} to {self.max} {counted}, not {len(value)}"


def length(low: int, high: int) -> validate.Length:
    """From ``low`` to ``high`` characters or items."""
    return _Length(low, high)


def about(description: str, example: object = None) -> dict[str, object]:
    """What the OpenAPI document says of a field."""
    if example is None:
        return {"description": description}
    return {"description": description, "example": example}


def shown(value: object) -> str:
    """A value as an error message may repeat it: short, and printable in any encoding."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def integer(literal: str) -> int:
    """What digits stand for; more of them than any field takes stand for a number out of range."""
    if len(literal) > _MAX_DIGITS:
        return -_OUT_OF_RANGE if literal.startswith("-") else _OUT_OF_RANGE
    return int(literal)


def name_of(field: object) -> str:
    """A field's name as it was sent, unless it is too long or strange to repeat."""
    text = str(field)
    plain = 1 <= len(text) <= _SHOWN and text.isprintable() and text.isascii()
    return text if plain else shown(text)


def _messages(kind: str) -> ErrorMessages:
    """Of a field that is null or left out, in place of marshmallow's own."""
    return {"null": f"null is not {kind}", "required": "is needed"}


class StrictInteger(fields.Integer):
    """A JSON integer: no float, text or boolean."""

    default_error_messages = _messages("an integer")

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, object] | None,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> int:
        if type(value) is not int:
            raise ValidationError(f"{shown(value)} is not an integer")
        return value


class QueryInteger(StrictInteger):
    """An integer in a query string: ASCII digits alone."""

    def _deserialize(
        self,
        value: object,
        attr: str | None,
        data: Mapping[str, object] | None,
        **kwargs: object,
    ) -> int:
        if isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
            return super()._deserialize(integer(value), attr, data, **kwargs)
        raise ValidationError(f"{shown(value)} is not an integer")


class StrictNumber(fields.Float):
    """A finite JSON number: no text, boolean, NaN or Infinity."""

    default_error_messages = _messages("a number")

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, object] | None,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> float:
        if type(value) not in {int, float}:
            raise ValidationError(f"{shown(value)} is not a number")
        assert isinstance(value, (int, float))
        if not math.isfinite(value):
            raise ValidationError(f"{value} is not a finite number")
        return float(value)


class StrictBoolean(fields.Boolean):
    """true or false: no 0, 1, "yes"."""

    default_error_messages = _messages("true or false")

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, object] | None,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> bool:
        if not isinstance(value, bool):
            raise ValidationError(f"{shown(value)} is not true or false")
        return value


class QueryBoolean(StrictBoolean):
    """true or false in a query string."""

    def _deserialize(
        self,
        value: object,
        attr: str | None,
        data: Mapping[str, object] | None,
        **kwargs: object,
    ) -> bool:
        return super()._deserialize(
            {"true": True, "false": False}.get(str(value), value), attr, data, **kwargs
        )


class StrictString(fields.String):
    """Text that every layer below can hold: no NUL, no lone surrogate.

    ``validate`` must bound the length; it runs after this.
    """

    default_error_messages = _messages("a string")

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, object] | None,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> str:
        if not isinstance(value, str):
            raise ValidationError(f"{shown(value)} is not a string")
        if "\0" in value:
            raise ValidationError("must not contain NUL")
        if _SURROGATE.search(value):
            raise ValidationError("must not contain half of a surrogate pair")
        return value


# Beside ``about`` where load_default is ``list``: the document repeats no default that is made.
EMPTY_BY_DEFAULT: Final[dict[str, object]] = {"default": []}


class StrictList(fields.List[str]):
    """A JSON array of texts. ``validate`` must bound their number."""

    default_error_messages = _messages("a list")

    def _deserialize(
        self,
        value: object,
        attr: str | None,
        data: Mapping[str, object] | None,
        **kwargs: object,
    ) -> list[str | None]:
        if not isinstance(value, list):
            raise ValidationError(f"{shown(value)} is not a list")
        return super()._deserialize(value, attr, data, **kwargs)
