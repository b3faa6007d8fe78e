"""Rotary positions in a config.json: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``
as before transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from backends.json_files import shown
from backends.models import files
from backends.models.rotary import SCALINGS, Scaling
from trainer_app.errors import ModelIncompatible

ROPE_THETA: Final = 10_000.0  # what an absent field means
SMALLEST: Final = 1e-6
LARGEST: Final = 1e12
_NUMBERS: Final = (
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
)
_PLAIN: Final = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
_SCALED: Final = {*_PLAIN, *_NUMBERS, "factor", "original_max_position_embeddings", "truncate"}


def parsed(published: Mapping[str, object]) -> tuple[float, Scaling | None]:
    """Theta, and how positions are scaled; raises ModelIncompatible for what is not computed."""
    field = "rope_scaling" if published.get("rope_scaling") else "rope_parameters"
    rotary = published.get(field) or {}
    if not isinstance(rotary, dict):
        raise _not_computed(field, rotary)
    source = rotary if rotary.get("rope_theta") is not None else published
    theta = _bounded(source, "rope_theta", ROPE_THETA)
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in ("default", *SCALINGS) or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise _not_computed(field, rotary)
    if rotary.keys() - (_PLAIN if kind == "default" else _SCALED):
        raise _not_computed(field, rotary)
    if kind == "default":
        return theta, None
    scaling = _scaling(kind, rotary, files.integer(published, "max_position_embeddings"))
    if kind == "yarn" and theta <= 1:
        raise ModelIncompatible(f"config.json: rope_theta is {theta}; yarn needs more than 1")
    return theta, scaling


def published(theta: float, scaling: Scaling | None) -> dict[str, object]:
    """The value of ``rope_parameters``."""
    if scaling is None:
        return {"rope_theta": theta, "rope_type": "default"}
    given = {name: value for name, value in asdict(scaling).items() if value is not None}
    if scaling.rope_type not in ("llama3", "yarn"):
        del given["original_max_position_embeddings"]  # no field of these
    return {"rope_theta": theta, **given}


def _bounded(config: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A number that leaves all tables finite."""
    value = files.number(config, name, default)
    if not SMALLEST <= value <= LARGEST:
        raise ModelIncompatible(
            f"config.json: {name} is {value}; supported: {SMALLEST:g} to {LARGEST:g}"
        )
    return value


def _scaling(kind: str, rotary: Mapping[str, object], context: int) -> Scaling:
    original = "original_max_position_embeddings"
    given = {name: _bounded(rotary, name) for name in _NUMBERS if rotary.get(name) is not None}
    factor = _bounded(rotary, "factor")
    if factor < 1:
        raise ModelIncompatible(f"config.json: factor is {factor}; supported: 1 or more")
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            given[name] = _bounded(rotary, name)
        if given["high_freq_factor"] <= given["low_freq_factor"]:
            raise ModelIncompatible(
                f"config.json: high_freq_factor {given['high_freq_factor']} is not above "
                f"low_freq_factor {given['low_freq_factor']}"
            )
    truncate = rotary.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise ModelIncompatible(f"config.json: truncate is {shown(truncate)}, not true or false")
    return Scaling(
        rope_type=kind,
        factor=factor,
        original_max_position_embeddings=(
            context if rotary.get(original) is None else files.integer(rotary, original)
        ),
        truncate=truncate,
        **given,
    )


def _not_computed(field: str, rotary: object) -> ModelIncompatible:
    return ModelIncompatible(
        f"config.json: {field} is {shown(rotary)}; supported: rope_type "
        f"{', '.join(('default', *SCALINGS))}, for all of the head, with their own fields"
    )
