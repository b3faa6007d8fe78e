"""The corpus that a job names: does it exist, is it text, what are its digest and its size."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import structlog

from trainer_app.api import current, request_id
from trainer_app.api.errors import field_named
from trainer_app.api.fields import shown
from trainer_app.api.ids import is_id
from trainer_app.api.job_fields import CORPUS
from trainer_app.api.text_scan import TextScan
from trainer_app.core.corpus_size import CorpusSize
from trainer_app.core.files import blocks
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested
from trainer_app.databank import corpus_cache
from trainer_app.databank.client import DataBank, RemoteFile
from trainer_app.databank.corpus_cache import LONGEST_ID
from trainer_app.databank.wire import SHORT
from trainer_app.errors import (
    CorpusEmpty,
    CorpusNotFound,
    DataBankUnavailable,
    DataNotFound,
    FieldError,
)
from trainer_app.safe_paths import open_beneath
from trainer_app.store import corpora

if TYPE_CHECKING:
    from pathlib import Path

    from trainer_app.settings import DataBank as DataBankSettings

_BLOCK: Final = 1_048_576
_REMEMBERED: Final = 256  # files
_PATIENCE_SECONDS: Final = 4.0  # for the data bank, redirects and all

_log = structlog.get_logger(__name__)

_Key = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus that a job may name."""

    sha256: str
    size: CorpusSize


class KnownFiles:
    """What corpus files hold, each read once for as long as the file is the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, Corpus] = OrderedDict()

    def of(self, root: Path, name: str) -> Corpus:
        """A file under ``root``.

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
            return known or self._remember(key, _read(file))

    def _remember(self, key: _Key, corpus: Corpus) -> Corpus:
        with self._lock:
            self._known[key] = corpus
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return corpus


def _read(file: BinaryIO) -> Corpus:
    scan = TextScan()
    for block in blocks(file, _BLOCK):
        scan.update(block)
    text = scan.finish()
    return Corpus(sha256=text.sha256, size=CorpusSize(bytes=text.bytes, lines=text.lines))


def chosen_corpus(
    file_id: str | None, path: str | None, *, path_field: str = CORPUS[1]
) -> Corpus | None:
    """The one corpus that is named; None: the data bank is yet to tell of it.

    Raises CorpusNotFound, CorpusEmpty and CorpusNotText, which name the field, and FieldError for
    one that is too large.
    """
    if path is not None:
        with field_named(path_field):
            return current.service(KnownFiles).of(current.settings().paths.corpus, path)
    with field_named(CORPUS[0]):
        return _of_id(file_id)


def sha256_of(corpus: Corpus | None) -> str:
    """Its digest, as a spec keeps it; empty: not known yet."""
    return "" if corpus is None else corpus.sha256


def _of_id(file_id: str | None) -> Corpus | None:
    if file_id is None or not is_id(file_id):
        raise CorpusNotFound(f"no corpus has the id {shown(file_id)}")
    try:
        row = corpora.get(current.database(), file_id)
        return Corpus(sha256=row.file_id, size=CorpusSize(bytes=row.bytes, lines=row.lines))
    except CorpusNotFound:
        bank = current.settings().data_bank
        if bank.url is None or len(file_id) > LONGEST_ID:
            raise
    file = corpus_cache.known(current.settings().paths.corpus_cache, file_id)
    file = file or _remote(bank, file_id)
    if file is None:
        return None
    if file.size == 0:
        raise CorpusEmpty("the corpus holds no text: 0 bytes")
    return Corpus(sha256=file.sha256, size=CorpusSize(bytes=file.size))


def _remote(bank: DataBankSettings, file_id: str) -> RemoteFile | None:
    """What the data bank says of a corpus, for which it has a few seconds.

    None where it does not answer as it should: the corpus may well be there, and the worker, who
    has the time, asks again. Raises CorpusNotFound, and FieldError for one that is too large.
    """
    give_up_at = time.monotonic() + _PATIENCE_SECONDS

    def should_stop() -> StopReason | None:
        return StopReason.TIMEOUT if time.monotonic() > give_up_at else None

    try:
        with DataBank(
            bank, request_id=request_id.current(), timeouts=SHORT, should_stop=should_stop
        ) as client:
            file = client.head(file_id)
    except DataNotFound:
        raise CorpusNotFound(f"{file_id}: no such corpus, neither here nor remote") from None
    except DataBankUnavailable as error:
        _log.warning("the worker is to ask the data bank again", error=error.message)
        return None
    except StopRequested:
        _log.warning("the worker is to ask the data bank again", error="it takes too long")
        return None
    if file.size > bank.max_bytes:
        reason = f"holds {file.size} bytes; APP__DATA_BANK_MAX_BYTES allows {bank.max_bytes}"
        raise FieldError("corpus_file_id", reason)
    return file
