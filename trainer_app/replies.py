"""The shapes of the API's answers, as its clients see them.

They are views of the JSON that came: a newer server's further fields are kept, and are there
when the answer is printed as JSON.
"""

from __future__ import annotations

from typing import Generic, TypedDict, TypeVar

Item = TypeVar("Item")


class Page(TypedDict, Generic[Item]):
    """A part of a list, newest first; ``next`` is the cursor of the next part."""

    data: list[Item]
    has_more: bool
    next: str | None


class Corpus(TypedDict):
    """One uploaded text."""

    file_id: str
    bytes: int
    lines: int
    created_at: float


class Tokenizer(TypedDict):
    """A tokenizer and what was measured on the held-out part of its corpus."""

    tokenizer_id: str
    artifact_path: str | None
    status: str
    coverage: float | None
    oov_rate: float | None
    token_count: int | None
    vocab_size: int | None
    char_coverage: float | None
    bytes_per_token: float | None
    error: str | None


class Accepted(TypedDict):
    """A training run that is queued."""

    run_id: str
    job_id: str


class Run(TypedDict):
    """A training run as it stands; times are unix seconds, losses nats per token."""

    run_id: str
    status: str
    message: str
    paused: bool
    error_code: str | None
    attempt: int
    progress: int
    epoch: int | None
    step: int | None
    total_steps: int | None
    train_loss: float | None
    val_loss: float | None
    tokens_per_sec: float | None
    eta_sec: float | None
    loss_chain: str | None
    loss_chain_step: int | None
    queue_position: int | None
    last_heartbeat_ts: float | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    spec: dict[str, object] | None  # None: its row in the database is damaged


class Moved(TypedDict):
    """A run that was paused or resumed, and where it stands now."""

    run_id: str
    status: str


class Cancelled(TypedDict):
    """The answer to a request to cancel."""

    status: str


class MetricPoint(TypedDict):
    """One point of a run's curve."""

    step: int
    train_loss: float | None
    val_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_sec: float | None
    step_ms: float | None
    mfu: float | None
    attempt: int
    chain: str | None


class Curve(TypedDict):
    """A run's curve, in the order of its steps."""

    run_id: str
    points: list[MetricPoint]


class ArtifactFile(TypedDict):
    """One file of an artifact."""

    name: str
    bytes: int
    sha256: str


class Artifact(TypedDict):
    """Where a finished model is and what it consists of."""

    storage: str
    file_id: str | None
    sha256: str
    files: list[ArtifactFile]


class Generated(TypedDict):
    """A request to continue a prompt; ``outputs`` are complete once ``status`` is final."""

    request_id: str
    status: str
    outputs: list[str] | None
    steps: int | None
    eos_terminated: list[bool] | None
    error: str | None


class Evaluated(TypedDict):
    """An evaluation; its figures are complete once ``status`` is "completed"."""

    run_id: str
    split: str
    request_id: str
    status: str
    path_override: str | None
    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None
    artifact_path: str | None
    error: str | None


class Candidate(TypedDict):
    """One of the likeliest tokens at a place."""

    token: str
    token_id: int
    probability: float
    bits: float


class Scored(TypedDict):
    """A request to score a text; entry i of the lists but ``tokens`` is about ``tokens[i + 1]``."""

    request_id: str
    status: str
    loss: float | None
    perplexity: float | None
    surprisal: list[float] | None
    topk: list[list[Candidate]] | None
    tokens: list[str] | None
    error: str | None


class ChatReply(TypedDict):
    """A turn of a chat; ``response`` is complete once ``status`` is "completed"."""

    session_id: str
    request_id: str
    status: str
    response: str | None
    error: str | None


class ChatMessage(TypedDict):
    """One message of a chat: its role is "user" or "assistant"."""

    role: str
    content: str


class Chat(TypedDict):
    """A chat so far."""

    session_id: str
    run_id: str
    messages: list[ChatMessage]
    created_at: float
