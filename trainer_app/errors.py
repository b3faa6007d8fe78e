"""Every error that the project raises on purpose.

Each carries the ``code`` that a client sees. Nothing here knows of HTTP: ``api/errors.py`` maps
codes to statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


def first_line(error: BaseException) -> str:
    """What an error says, without what libraries append to it; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class TrainerError(Exception):
    """An error with a code of its own and a message written for the person who reads it."""

    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class FieldError(TrainerError):
    """A value outside what is allowed; names the field."""

    code = "INVALID_INPUT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = message


class SettingsError(TrainerError):
    """A setting has a bad value; the message starts with the variable's name."""

    code = "INVALID_INPUT"


class NotFound(TrainerError):
    """Nothing has this name."""

    code = "NOT_FOUND"


class RunNotFound(NotFound):
    """No run has this id."""

    code = "RUN_NOT_FOUND"


class TokenizerNotFound(NotFound):
    """No tokenizer has this id."""

    code = "TOKENIZER_NOT_FOUND"


class CorpusNotFound(NotFound):
    """No corpus has this id or path."""

    code = "CORPUS_NOT_FOUND"


class DataNotFound(NotFound):
    """The data, a request or a file of an artifact, is not there."""

    code = "DATA_NOT_FOUND"


class EvalNotFound(NotFound):
    """The run has no evaluation on this split."""

    code = "EVAL_NOT_FOUND"


class Conflict(TrainerError):
    """The request does not fit the present state."""

    code = "CONFLICT"


class NotReady(Conflict):
    """What is asked for does not exist yet."""

    code = "NOT_READY"


class ModelIncompatible(Conflict):
    """Model, tokenizer or base run do not fit together."""

    code = "MODEL_INCOMPATIBLE"


class AlreadyFinished(Conflict):
    """The run has already reached its final state."""

    code = "ALREADY_FINISHED"


class Unavailable(TrainerError):
    """A service that the request needs, the database or Redis, is away."""

    code = "UNAVAILABLE"


class RowDamaged(TrainerError):
    """What a row of the database should tell in JSON cannot be read."""

    code = NotReady.code  # for clients: a job that ends by it has the code of a system's failure


class LeaseLost(TrainerError):
    """The job's lease has passed to another attempt; nothing more may be written."""

    code = "WORKER_LOST"


class UserError(TrainerError):
    """A run cannot succeed for a reason that its user can mend; it is never retried."""


class CorpusEmpty(UserError):
    """The corpus holds no text."""

    code = "CORPUS_EMPTY"


class CorpusNotText(UserError):
    """The corpus is not UTF-8 text."""

    code = "CORPUS_NOT_TEXT"


class CorpusTooShort(UserError):
    """The corpus is too short for what was asked; the message gives both numbers."""

    code = "CORPUS_TOO_SHORT"


class CorpusChanged(UserError):
    """The corpus is no longer the text that the run was posted with."""

    code = "CORPUS_CHANGED"


class TokenizerTrainFailed(UserError):
    """The tokenizer cannot be trained from this corpus with these settings."""

    code = "TOKENIZER_TRAIN_FAILED"


class CudaNotAvailable(UserError):
    """A CUDA device was asked for and none can be used."""

    code = "CUDA_NOT_AVAILABLE"


class OutOfMemory(UserError):
    """The model and its batch do not fit into the device's memory."""

    code = "OUT_OF_MEMORY"


class LossNotFinite(UserError):
    """The loss became NaN or infinite."""

    code = "LOSS_NOT_FINITE"


class IdsChanged(TrainerError):
    """Token ids are no longer what they were when a run began to read them."""


class DiskFull(TrainerError):
    """A file could not be written for want of space."""

    code = "DISK_FULL"


class DiskAway(TrainerError):
    """What is needed lies on a disk that is not mounted."""


class DataBankUnavailable(TrainerError):
    """The data bank does not answer, or not as it must."""

    code = "DATA_BANK_UNAVAILABLE"


class ArtifactUploadFailed(TrainerError):
    """A finished model could not be stored in the data bank; it is whole where it was made."""

    code = "ARTIFACT_UPLOAD_FAILED"


class WorkerLost(TrainerError):
    """The run's worker died as often as it was allowed to."""

    code = "WORKER_LOST"


class TimedOut(TrainerError):
    """The job ran for longer than CELERY__JOB_TIMEOUT_SEC."""

    code = "TIMED_OUT"


# What a run can fail with, and what that means. ARTIFACT_UPLOAD_FAILED alone is that of a completed
# one; whatever has no code of this list is INTERNAL_ERROR.
RUN_CODES: Final[Mapping[str, str]] = {
    CorpusEmpty.code: "The corpus holds no text.",
    CorpusNotText.code: "The corpus is not UTF-8 text.",
    CorpusTooShort.code: "The corpus is too short for what was asked: the message has both sizes.",
    CorpusChanged.code: "The corpus is gone, or no longer the text that the run was posted with.",
    TokenizerTrainFailed.code: "The run's own tokenizer cannot be trained from this corpus.",
    ModelIncompatible.code: "Model, tokenizer or base run do not fit together, or one is gone.",
    CudaNotAvailable.code: "CUDA, or a precision that needs it, was asked for and cannot be used.",
    OutOfMemory.code: "The model and its batch do not fit into memory.",
    LossNotFinite.code: "The loss became NaN or infinite.",
    ArtifactUploadFailed.code: "The run completed; its model is here, but not in the data bank.",
    DataBankUnavailable.code: "The data bank did not answer, or not as it must.",
    DiskFull.code: "A file could not be written for want of space.",
    WorkerLost.code: "Its worker died as often as a run may lose one.",
    TimedOut.code: "It ran for longer than CELERY__JOB_TIMEOUT_SEC.",
    TrainerError.code: "A bug, or a service or a folder that failed; the log tells more.",
}
