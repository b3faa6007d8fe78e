"""The corpus that a job names: does it exist, is it text, what is its digest."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO, Final

from trainer_app.api import current
from trainer_app.api.ids import is_id
from trainer_app.api.text_scan import TextScan
from trainer_app.errors import CorpusNotFound
from trainer_app.safe_paths import open_beneath
from trainer_app.store import corpora

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK: Final = 1_048_576
_REMEMBERED: Final = 256  # digests

_Key = tuple[str, int, int, int, int]


class Digests:
    """The digests of corpus files, each read once for as long as the file is the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, str] = OrderedDict()

    def of(self, root: Path, name: str) -> str:
        """The SHA-256 of a file under ``root``.

        Raises CorpusNotFound, in the same words for what is missing and what is refused,
        CorpusNotText and CorpusEmpty.
        """
        try:
            file = open_beneath(root, name)
        except FileNotFoundError:
            raise CorpusNotFound("there is no such file under the corpus root") from None
        with file:
            status = os.fstat(file.fileno())
            key = (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            with self._lock:
                known = self._known.get(key)
            return known or self._remember(key, _digest(file))

    def _remember(self, key: _Key, digest: str) -> str:
        with self._lock:
            self._known[key] = digest
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return digest


def _digest(file: BinaryIO) -> str:
    scan = TextScan()
    while block := file.read(_BLOCK):
        scan.update(block)
    return scan.finish().sha256


def corpus_sha256(file_id: str | None, path: str | None) -> str:
    """The digest of the one corpus that is named; raises CorpusNotFound where there is none."""
    if path is not None:
        return current.service(Digests).of(current.settings().paths.corpus, path)
    if file_id is None or not is_id(file_id):
        raise CorpusNotFound("no corpus has this id")
    return corpora.get(current.database(), file_id).file_id
