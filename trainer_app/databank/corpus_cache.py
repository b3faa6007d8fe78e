"""Corpora from the data bank, kept under their ids there: fetched once for all runs of a host.

``{id}.txt`` is the text. ``{id}.txt.sha256`` remembers its digest, and of which size and time the
file was then, so that it is not read again for each run. The time of its last use, which clean-up
goes by, is its access time, set here: file systems update it as they please.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final

from trainer_app.core.files import remove_directory, write_atomically
from trainer_app.core.stopping import ShouldStop
from trainer_app.databank.client import DataBank, OtherBytes, RemoteFile
from trainer_app.databank.digests import sha256_of
from trainer_app.databank.download import PART, OnMessage, download
from trainer_app.databank.retry import Patience, Tries, TryAgain
from trainer_app.errors import CorpusChanged, CorpusNotFound, DataNotFound
from trainer_app.file_lock import locked
from trainer_app.safe_paths import is_id, open_regular

_SUFFIX: Final = ".txt"
_DIGEST: Final = ".sha256"
LONGEST_ID: Final = 64  # characters, as the database keeps them
_LONGEST_NOTE: Final = 256  # bytes
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def known(folder: Path, file_id: str) -> RemoteFile | None:
    """Size and digest of a corpus that is here, as they were found when it was fetched.

    None where there is none, and where its file is another by now. The data bank is not asked: an
    id stands for one text.
    """
    path = folder / f"{file_id}{_SUFFIX}"
    try:
        note = _kept_note(path)
        sha256 = note.partition(" ")[0]
        if _SHA256.fullmatch(sha256) is None or note != _note(path, sha256):
            return None
        return RemoteFile(size=path.stat().st_size, sha256=sha256)
    except OSError:
        return None


def identify(
    bank: DataBank,
    folder: Path,
    file_id: str,
    *,
    patience: Patience,
    should_stop: ShouldStop,
    on_message: OnMessage,
) -> str:
    """The digest of a corpus: from the cache, or from the data bank, for as long as it takes.

    Raises CorpusNotFound; DataBankUnavailable when patience is at its end; StopRequested.
    """
    here = known(folder, file_id)
    if here is not None:
        return here.sha256
    tries = Tries(patience, should_stop=should_stop)
    try:
        while True:
            try:
                return bank.head(file_id).sha256
            except (TryAgain, DataNotFound) as error:
                on_message(f"{error.message}; trying again")
                tries.failed(error)
    except DataNotFound:
        raise CorpusNotFound(f"the data bank has no corpus {file_id}") from None


def fetch(
    bank: DataBank,
    folder: Path,
    file_id: str,
    *,
    sha256: str,
    max_bytes: int,
    patience: Patience,
    should_stop: ShouldStop,
    on_message: OnMessage,
) -> Path:
    """The file of a corpus with this digest, from the cache or from the data bank.

    Two processes that want the same one fetch it once. What stands in its place and is no file is
    removed. Raises CorpusNotFound; CorpusChanged where the id now stands for another text; else as
    ``download`` does.
    """
    if not is_id(file_id) or len(file_id) > LONGEST_ID:
        raise CorpusNotFound("no corpus has this id")
    path = folder / f"{file_id}{_SUFFIX}"
    with locked(lock_path(folder, file_id), should_stop=should_stop):
        _drop_what_is_no_file(folder, file_id)
        if not _is_here(path, sha256, should_stop):
            on_message("fetching the corpus from the data bank")
            try:
                download(
                    bank,
                    file_id,
                    path,
                    sha256=sha256,
                    max_bytes=max_bytes,
                    patience=patience,
                    should_stop=should_stop,
                    on_message=on_message,
                )
            except DataNotFound:
                raise CorpusNotFound(f"the data bank has no corpus {file_id}") from None
            except OtherBytes as error:
                raise CorpusChanged(error.message) from error
            _remember(path, sha256)
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return path


def lock_path(folder: Path, file_id: str) -> Path:
    """The lock of one corpus: held while it is fetched, and while it is deleted."""
    return folder / f".{file_id}.lock"


def ids(folder: Path) -> list[str]:
    """The ids of all corpora that are here, whole or in part."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    stems = {name.removesuffix(PART).removesuffix(_SUFFIX) for name in names if _is_ours(name)}
    return sorted(filter(is_id, stems))


def files(folder: Path, file_id: str) -> list[Path]:
    """The files of one corpus that are here: the text first, then what belongs to it."""
    text = f"{file_id}{_SUFFIX}"
    candidates = [folder / text, folder / f"{text}{PART}", folder / f"{text}{_DIGEST}"]
    return [path for path in candidates if path.is_symlink() or path.exists()]


def _is_ours(name: str) -> bool:
    return name.endswith((_SUFFIX, f"{_SUFFIX}{PART}"))


def _drop_what_is_no_file(folder: Path, file_id: str) -> None:
    """Remove folders, FIFOs and links to them that somebody has put in the place of our files."""
    for path in files(folder, file_id):
        if path.is_file():
            continue
        if path.is_dir() and not path.is_symlink():
            remove_directory(path)
        else:
            path.unlink()


def _is_here(path: Path, sha256: str, should_stop: ShouldStop) -> bool:
    """Whether the text is here; one of unknown digest, as somebody may have put it, is read."""
    try:
        known = _kept_note(path)
    except FileNotFoundError:
        known = ""
    if not path.exists():
        return False
    if known != _note(path, sha256):
        if sha256_of(path, should_stop) != sha256:
            return False
        _remember(path, sha256)
    return True


def _remember(path: Path, sha256: str) -> None:
    write_atomically(path.with_name(f"{path.name}{_DIGEST}"), _note(path, sha256).encode())


def _kept_note(path: Path) -> str:
    with open_regular(path.with_name(f"{path.name}{_DIGEST}")) as file:
        return file.read(_LONGEST_NOTE).decode("ascii", "replace")


def _note(path: Path, sha256: str) -> str:
    status = path.stat()
    return f"{sha256} {status.st_size} {status.st_mtime_ns}\n"
