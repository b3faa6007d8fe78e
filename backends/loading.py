"""From a registry name, or a folder of files, to the backend behind it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from backends.json_files import read_json, shown
from backends.registry import MODEL_FAMILIES, MODEL_TYPES, TOKENIZER_KINDS
from trainer_app.errors import FieldError, ModelIncompatible

if TYPE_CHECKING:
    from backends.contracts import CausalModel, ModelFamily, Tokenizer, TokenizerKind


def model_family(name: str) -> ModelFamily:
    """The model family of this name; raises FieldError for an unknown one."""
    family: ModelFamily = import_module(_module("model_family", name, MODEL_FAMILIES)).FAMILY
    return family


def tokenizer_kind(name: str) -> TokenizerKind:
    """The tokenizer kind of this name; raises FieldError for an unknown one."""
    kind: TokenizerKind = import_module(_module("method", name, TOKENIZER_KINDS)).KIND
    return kind


def load_model(directory: Path) -> CausalModel:
    """The model in a folder, by the ``model_type`` of its config.json, on the CPU.

    Raises ModelIncompatible where there is none that can be read.
    """
    model_type = _named(directory / "config.json", "model_type", MODEL_TYPES)
    return model_family(MODEL_TYPES[model_type]).load(directory)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a folder, by what ``save`` noted in tokenizer_config.json.

    Raises ModelIncompatible where there is none that can be read.
    """
    path = directory / "tokenizer_config.json"
    return tokenizer_kind(_named(path, "trainer_tokenizer_kind", TOKENIZER_KINDS)).load(directory)


def _named(path: Path, key: str, table: Mapping[str, str]) -> str:
    content = read_json(path)
    name = content.get(key) if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in table:
        raise ModelIncompatible(
            f"{path.name}: {key} is {shown(name)}, not one of {', '.join(table)}"
        )
    return name


def _module(field: str, name: str, table: Mapping[str, str]) -> str:
    if name not in table:
        raise FieldError(field, f"{name!r} is not one of {', '.join(table)}")
    return table[name]
