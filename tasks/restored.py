"""An attempt that the disk knows more of than the database, which was restored from a backup.

The row then counts attempts anew, from fewer than there were. Files are named by the attempt, and
those of a later one go before those of an earlier: the new ones would be the old ones' losers, or
take their names. So such an attempt is counted for one beyond all that have left a file.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from tasks import journal, process, staging
from trainer_app.core import checkpoint_name
from trainer_app.store import lease
from trainer_app.store.claims import Claim
from trainer_app.store.tables import JobKind

_LEAVES_FILES: Final = frozenset({JobKind.TRAIN, JobKind.TOKENIZER, JobKind.EVALUATE})
_LARGEST: Final = 2**30  # beyond which a row can count as many; a name with more is nobody's


def counted_anew(claim: Claim) -> Claim:
    """The claim, as an attempt beyond all that the disk has files of.

    To be called before it makes any. A later attempt that is no matter of a backup has the row by
    now: raises LeaseLost then, and has changed nothing.
    """
    newest = _newest(claim)
    if newest < claim.attempt:
        return claim
    return lease.lift(process.database(), claim, above=newest)


def said(claim: Claim) -> str:
    """What the log is to say of a claim that was counted anew."""
    return (
        f"attempt {claim.counted} by the database is counted as attempt {claim.attempt}: there are "
        "files of later ones than the database knows of, as after it was restored from a backup"
    )


def _newest(claim: Claim) -> int:
    """The latest attempt that has left a file; 0: none."""
    if claim.kind not in _LEAVES_FILES:
        return 0
    settings = process.settings()
    run = settings.paths.runs / claim.job_id
    found = [0]
    with suppress(OSError):  # of a disk that lists nothing: the work says so
        found += checkpoint_name.attempts(run / checkpoint_name.FOLDER)
        found += journal.attempts(run)
        found += staging.attempts(settings, claim.job_id)
    return max(number for number in found if number <= _LARGEST)
