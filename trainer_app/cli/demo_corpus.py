"""The demo's corpus: the source of the Python standard library that runs it.

Real text that every machine has: nothing is downloaded, and who reads Python can judge what the
model writes.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app.errors import CorpusEmpty

# Tests repeat themselves, and tables of character codes are no language.
_LEFT_OUT: Final = frozenset(
    {"__pycache__", "encodings", "idle_test", "test", "tests"} | {"dist-packages", "site-packages"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """The corpus as it was written."""

    files: int
    bytes: int


def write_corpus(target: Path, source: Path | None = None) -> SourceText:
    """Write the modules below ``source`` into one file, in the order of their names.

    By default that is this interpreter's standard library. Raises CorpusEmpty where it comes
    without its source.
    """
    root = source or Path(sysconfig.get_path("stdlib"))
    files = 0
    part = target.with_name(f".{target.name}.part")
    with part.open("w", encoding="utf-8", newline="\n") as corpus:
        for text in _modules(root):
            corpus.write(text.rstrip("\n") + "\n\n\n")
            files += 1
    if not files:
        part.unlink()
        raise CorpusEmpty(f"{root} holds no Python source to train on")
    part.replace(target)
    return SourceText(files=files, bytes=target.stat().st_size)


def _modules(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            continue
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a dangling link, or a file of another encoding: the rest is enough
        if text.strip() and "\0" not in text:
            yield text
