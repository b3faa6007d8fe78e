"""What is asked for, on its way from the API to a worker. Imports no torch: the API parses it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Final, Literal, NoReturn, Self, get_args, get_origin, get_type_hints

from trainer_app.errors import RowDamaged

# No field: beside the empty digest of a corpus it tells workers of the version before, which take
# a spec for complete, that they cannot do this job.
DIGEST_PENDING: Final = "corpus_digest_pending"
# Why a damaged row cannot be used.
ASKED_LOST: Final = (
    "what it was asked for can no longer be read: its row in the database is damaged"
)
RESULT_LOST: Final = "what came of it can no longer be read: its row in the database is damaged"


def json_object(text: str) -> dict[str, object] | None:
    """The JSON object that a column holds; None where somebody has put anything else there.

    A number that is infinite as a double, or an integer of more than 64 bits, is something else.
    """
    try:
        found: object = _STRICT.decode(text)
    except (ValueError, TypeError, RecursionError):  # TypeError: SQLite takes bytes for a text
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    if math.isinf(found := float(digits)):
        raise ValueError(f"{digits} is beyond all numbers")
    return found


def _bounded(digits: str) -> int:
    if not -(2**63) <= (found := int(digits)) < 2**63:
        raise ValueError(f"{digits} has more than 64 bits")
    return found


_STRICT: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSpec:
    """A dataclass of plain values and tuples that travels as a JSON object."""

    def to_json(self) -> str:
        """A JSON object that ``from_json`` reads back to an equal spec."""
        values = asdict(self)
        if values.get("corpus_sha256") == "":
            values[DIGEST_PENDING] = True
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, over: str | None = None) -> Self:
        """The spec that ``to_json`` wrote; fields that another version knew are left out.

        ``over``: a JSON object of fields that have other values since.

        Raises RowDamaged where one of them is no JSON object, lacks a field, or has in one a value
        of a type that is not its. A version that is to take other types gives the field a new name.
        """
        values = json_object(text)
        changed = {} if over is None else json_object(over)
        if values is None or changed is None:
            raise RowDamaged(f"{ASKED_LOST} (it holds no JSON object)")
        accepted = _accepted(cls)
        known = {
            name: _checked(name, value, accepted[name])
            for name, value in (values | changed).items()
            if name in accepted
        }
        try:
            return cls(**known)
        except TypeError as error:
            raise RowDamaged(f"{ASKED_LOST} (a field is missing)") from error

    @classmethod
    def read(cls, text: str, *, over: str | None = None) -> Self | None:
        """The same; None where the row is damaged."""
        try:
            return cls.from_json(text, over=over)
        except RowDamaged:
            return None

    @classmethod
    def asked_beyond(cls, text: str) -> list[str]:
        """The fields of a later version that ask for something: a worker of this one cannot do it.

        A field that comes new is null, false, 0 or empty where all is to be as before. None in what
        cannot be read: no version could do that.
        """
        known = {*_accepted(cls), DIGEST_PENDING}
        values = json_object(text) or {}
        return sorted(name for name, value in values.items() if value and name not in known)

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> Self:
        """The spec of these values, which the API's schema has checked."""
        return cls.from_json(json.dumps(dict(values)))


_known: Final[dict[type[JsonSpec], Mapping[str, frozenset[type]]]] = {}  # lists ask for hundreds


def _accepted(spec: type[JsonSpec]) -> Mapping[str, frozenset[type]]:
    """By field, the types that its value may have as JSON is read. All tuples are of texts."""
    if spec not in _known:
        hints = get_type_hints(spec)
        _known[spec] = {name: frozenset(_types(hint)) for name, hint in hints.items()}
    return _known[spec]


def _types(hint: object) -> Iterator[type]:
    origin = get_origin(hint)
    if origin is UnionType:
        for choice in get_args(hint):
            yield from _types(choice)
    elif origin is Literal:
        yield from map(type, get_args(hint))
    elif origin is tuple:
        yield list
    else:
        assert isinstance(hint, type), hint
        yield hint
        if hint is float:
            yield int


def _checked(name: str, value: object, accepted: frozenset[type]) -> object:
    """The value as a spec has it. Raises RowDamaged for one that no spec has there."""
    if type(value) not in accepted:
        raise RowDamaged(f"{ASKED_LOST} ({name} is no {_named(accepted)})")
    items = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not all(isinstance(item, str) for item in items):
        raise RowDamaged(f"{ASKED_LOST} ({name} is no list of texts)")
    if not all(_is_utf8(item) for item in items if isinstance(item, str)):
        raise RowDamaged(f"{ASKED_LOST} ({name} is no UTF-8)")
    return tuple(items) if isinstance(value, list) else value


def _is_utf8(text: str) -> bool:
    # JSON can name half a character, which no database takes and no client is sent.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(accepted: frozenset[type]) -> str:
    return " or ".join(sorted(kind.__name__ for kind in accepted))
