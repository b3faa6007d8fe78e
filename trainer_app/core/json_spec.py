"""What is asked for, on its way from the API to a worker. Imports no torch: the API parses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Self

# No field: beside the empty digest of a corpus it tells workers of the version before, which take
# a spec for complete, that they cannot do this job.
DIGEST_PENDING: Final = "corpus_digest_pending"


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
        """
        known = {field.name for field in fields(cls)}
        values = json.loads(text) | json.loads(over or "{}")
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
                if name in known
            }
        )

    @classmethod
    def asked_beyond(cls, text: str) -> list[str]:
        """The fields of a later version that ask for something: a worker of this one cannot do it.

        A field that comes new is null, false, 0 or empty where all is to be as before.
        """
        known = {field.name for field in fields(cls)} | {DIGEST_PENDING}
        return sorted(
            name for name, value in json.loads(text).items() if value and name not in known
        )

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> Self:
        """The spec of these values, which the API's schema has checked."""
        return cls.from_json(json.dumps(dict(values)))
