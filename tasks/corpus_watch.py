"""Whether the file that a run was posted for is still the text that it was then.

The ids of a text that was tokenized before are read again without it, so that an edit would stay
unnoticed: the next run of the same spec would be of another text, and nobody would know why.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from trainer_app.core.observer import CheckpointReport, EvaluationReport, Silent, StopReason
from trainer_app.core.stopping import ShouldStop, StopRequested
from trainer_app.databank.digests import sha256_of
from trainer_app.errors import CorpusChanged

_MARGIN_SECONDS: Final = 5.0  # from the digest of a POST to its row, and between two clocks


class CorpusWatch(Silent):
    """Looks whenever there is something to lose, at the file's times first: those cost nothing."""

    def __init__(
        self, corpus: Path, *, sha256: str, posted_at: float, should_stop: ShouldStop
    ) -> None:
        """``posted_at``, in unix seconds: the file had this digest then."""
        self._corpus = corpus
        self._sha256 = sha256
        self._posted_at = posted_at
        self._should_stop = should_stop
        self._known: tuple[int, ...] | None = None
        self._stopped = False

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        """Raises as ``check`` does."""
        del evaluation
        self.check()

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Raises as ``check`` does; the checkpoint is there to go on from."""
        del checkpoint
        self.check()

    def check(self) -> None:
        """Raise CorpusChanged where it is another text.

        A file that is gone, or that cannot be read now, says nothing of its text; and a run that is
        to stop has no time for it: the next look is at its next attempt.
        """
        if self._should_stop() is not None:
            return
        try:
            status = self._corpus.stat()
            now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            if now == self._known:
                return
            digest = self._sha256
            if not stat.S_ISREG(status.st_mode):
                digest = "of no text"
            elif self._known is not None or self._touched(status):
                digest = sha256_of(self._corpus, self._asked_to_stop)
        except OSError:
            return
        except StopRequested:
            if self._stopped:
                return
            raise  # an interruption
        if digest != self._sha256:
            raise CorpusChanged(
                f"the corpus has SHA-256 {digest} now, "
                f"but the run was posted for a text with {self._sha256}"
            )
        self._known = now

    def _asked_to_stop(self) -> StopReason | None:
        reason = self._should_stop()
        self._stopped = reason is not None
        return reason

    def _touched(self, status: os.stat_result) -> bool:
        return max(status.st_mtime, status.st_ctime) > self._posted_at - _MARGIN_SECONDS
