"""What the tests of models and tokenizers share: a real text and what was trained on it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import settings

from backends.contracts import Tokenizer
from backends.loading import tokenizer_kind
from backends.registry import TOKENIZER_KINDS

settings.register_profile("untimed", deadline=None)  # the machine may be busy
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def text() -> str:
    """100 kB of Python: indentation, blank lines, punctuation, words."""
    return Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizers(text: str) -> dict[str, Tokenizer]:
    """A small tokenizer of each kind."""
    return {
        name: tokenizer_kind(name).train(text.splitlines(True), vocab_size=600, min_frequency=1)
        for name in TOKENIZER_KINDS
    }
