"""A whole file from the data bank: resumed where it broke off, and checked before it is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app.core.files import disk_full_named, fsync_directory
from trainer_app.core.stopping import ShouldStop
from trainer_app.databank.client import DataBank, OtherBytes, RemoteFile
from trainer_app.databank.digests import sha256_of
from trainer_app.databank.retry import Patience, Tries, TryAgain
from trainer_app.errors import DataBankUnavailable, DataNotFound

PART: Final = ".part"  # what the name of an unfinished file ends with
_PROGRESS_BYTES: Final = 65_536  # less than that between two failures is no progress
_MESSAGE_SECONDS: Final = 5.0

OnMessage = Callable[[str], object]


def download(
    bank: DataBank,
    file_id: str,
    target: Path,
    *,
    sha256: str,
    max_bytes: int,
    patience: Patience,
    should_stop: ShouldStop,
    on_message: OnMessage,
) -> None:
    """Fetch the file with this digest to ``target``, going on from ``target``.part.

    One caller at a time for a target. Raises DataNotFound; OtherBytes where the data bank has
    another file under this id; DataBankUnavailable when patience is at its end, or for a file
    larger than ``max_bytes``; DiskFull; StopRequested, which leaves the part.
    """
    part = target.with_name(f"{target.name}{PART}")
    part.parent.mkdir(parents=True, exist_ok=True)
    tries = Tries(patience, should_stop=should_stop)
    fetching = _Fetching(bank=bank, file_id=file_id, part=part, tries=tries, tell=on_message)
    while True:
        try:
            file = bank.head(file_id)
            _check(file, sha256, max_bytes)
            fetching.complete(file)
            _verify(part, sha256, should_stop)
        except (TryAgain, DataNotFound) as error:
            on_message(f"{error.message}; trying again")
            tries.failed(error)
        else:
            part.rename(target)
            fsync_directory(target.parent)
            return


def _check(file: RemoteFile, sha256: str, max_bytes: int) -> None:
    if file.sha256 != sha256:
        raise OtherBytes(f"the data bank has SHA-256 {file.sha256} under this id, not {sha256}")
    if file.size > max_bytes:
        raise DataBankUnavailable(
            f"the file holds {file.size} bytes: APP__DATA_BANK_MAX_BYTES allows {max_bytes}"
        )


@dataclass(slots=True, kw_only=True)
class _Fetching:
    """The growing part."""

    bank: DataBank
    file_id: str
    part: Path
    tries: Tries
    tell: OnMessage
    farthest: int = 0  # bytes: to come as far once more is no progress
    told_at: float = 0.0

    def complete(self, file: RemoteFile) -> None:
        """One try to fetch what is missing."""
        have = _size(self.part)
        if have > file.size:
            self.part.unlink()
            have = 0
        if have < file.size or not have:
            try:
                self._fetch(file, have)
            except TryAgain as error:
                if error.wrong:  # what there is may be as wrong
                    self.part.unlink(missing_ok=True)
                    raise
                come = f"{_size(self.part)} of {file.size} bytes have come"
                raise TryAgain(
                    f"{error.message}; {come}", pause_seconds=error.pause_seconds
                ) from error

    def _fetch(self, file: RemoteFile, have: int) -> None:
        with (
            self.bank.open(self.file_id, file, start=have) as answer,
            disk_full_named(self.part),
            self.part.open("ab") as out,
        ):
            if answer.start < have:
                out.truncate(answer.start)
            size = answer.start
            for block in answer.blocks:
                size += len(block)
                if size > file.size:
                    raise TryAgain("the data bank sends more than it announced", wrong=True)
                out.write(block)
                self._got(size, file.size)
            out.flush()
            os.fsync(out.fileno())
        if size < file.size:
            raise TryAgain("what the data bank sent ends too early")

    def _got(self, size: int, of: int) -> None:
        if size - self.farthest >= _PROGRESS_BYTES:
            self.farthest = size
            self.tries.progressed()
        now = time.monotonic()
        if now - self.told_at >= _MESSAGE_SECONDS:
            self.told_at = now
            self.tell(f"fetching: {size / 1e6:.1f} of {of / 1e6:.1f} MB")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _verify(part: Path, sha256: str, should_stop: ShouldStop) -> None:
    found = sha256_of(part, should_stop)
    if found != sha256:
        part.unlink()
        raise TryAgain(f"what the data bank sent has SHA-256 {found}, not {sha256}", wrong=True)
