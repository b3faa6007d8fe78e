"""From a registry name to the backend behind it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from backends.registry import MODEL_FAMILIES, TOKENIZER_KINDS
from trainer_app.errors import FieldError

if TYPE_CHECKING:
    from backends.contracts import ModelFamily, TokenizerKind


def model_family(name: str) -> ModelFamily:
    """The model family of this name; raises FieldError for an unknown one."""
    family: ModelFamily = import_module(_module("model_family", name, MODEL_FAMILIES)).FAMILY
    return family


def tokenizer_kind(name: str) -> TokenizerKind:
    """The tokenizer kind of this name; raises FieldError for an unknown one."""
    kind: TokenizerKind = import_module(_module("method", name, TOKENIZER_KINDS)).KIND
    return kind


def _module(field: str, name: str, table: Mapping[str, str]) -> str:
    if name not in table:
        raise FieldError(field, f"{name!r} is not one of {', '.join(table)}")
    return table[name]
