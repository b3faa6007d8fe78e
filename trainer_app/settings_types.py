"""What the settings are; ``trainer_app.settings`` reads them."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where files live; all default to folders under ``data_root``."""

    data_root: Path
    artifacts: Path  # finished models and tokenizers
    runs: Path  # working state of runs: checkpoints, staging
    logs: Path  # one JSON-lines file a job
    corpus: Path  # what corpus_path, prompt_path, path may name
    uploads: Path  # corpora posted to /corpora, by digest
    tokens: Path  # memory-mapped token ids, by digest
    compiled: Path  # code for GPUs, by torch's compiler
    corpus_cache: Path  # corpora fetched from the data bank, by their ids there


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """The broker and the bus for news."""

    url: str
    given: bool  # REDIS__URL is set: ``trainer up`` starts no broker of its own
    enabled: bool
    timeout_seconds: float = 2.0  # connect and read; a hung server must not hang a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """How jobs are queued, leased and retried."""

    queue_name: str
    timeout_seconds: int
    result_ttl_seconds: int
    failure_ttl_seconds: int
    retry_max: int  # further attempts after a failure that is not the user's
    retry_intervals_seconds: tuple[int, ...]
    lease_seconds: float
    beat_seconds: float
    checkpoint_seconds: float  # time between checkpoints: the most that a crash costs
    max_crashes: int  # a run that takes its worker down this often is failed
    spare_seconds: float  # from the start of a training process to that of a spare one; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Who may call."""

    api_keys: tuple[str, ...]
    allow_open: bool
    rate_limit: str = ""  # such as 100/minute, of one client; empty: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Where the API listens and what it takes."""

    host: str
    port: int
    threads: int
    max_body_bytes: int  # of a JSON body
    max_upload_bytes: int  # of a corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBank:
    """A remote store of corpora and artifacts."""

    url: str | None  # without a slash at its end; None: there is none
    api_key: str = field(repr=False)
    max_bytes: int  # of a file that is fetched
    retry_seconds: float  # how long a transfer that gets nowhere is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """When the weights of models that lie in the data bank are deleted here."""

    enabled: bool
    verify_upload: bool  # ask the data bank for size and digest before
    grace_seconds: float  # since the upload, and since the last use
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusCacheCleanup:
    """When corpora from the data bank are deleted here."""

    enabled: bool
    max_bytes: int  # of the cache as a whole
    min_free_bytes: int  # of its file system
    eviction_policy: str  # "lru": the longest unused first; "oldest": the first fetched first


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCacheCleanup:
    """When token ids are deleted, the longest unused first; they can be made again."""

    enabled: bool
    max_bytes: int  # of the cache as a whole
    min_free_bytes: int  # of its file system


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCleanup:
    """When tokenizers that no run names are deleted."""

    enabled: bool
    min_unused_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Weights & Biases. Its own variables, such as WANDB_MODE, are left to it."""

    enabled: bool
    project: str
    directory: Path  # it keeps its files in a folder wandb in there


@dataclass(frozen=True, slots=True, kw_only=True)
class Flower:
    """The pages that show workers and tasks, with ``trainer up --flower``."""

    host: str
    port: int
    basic_auth: str  # user:password, several comma-separated; empty: made up and kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What programs beside our own read; checked here, so that a mistake is found at the start."""

    torch_index: str  # an extra package index for ``make install``; empty: none
    hugging_face_home: Path | None  # where its libraries keep what they fetch; None: they decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one process."""

    environment: str
    git_commit: str  # of the code, where it does not run from a checkout; empty: not known
    paths: Paths
    redis: Redis
    database_url: str
    jobs: Jobs
    security: Security
    api: Api
    data_bank: DataBank
    cleanup: Cleanup
    corpus_cache_cleanup: CorpusCacheCleanup
    token_cache_cleanup: TokenCacheCleanup
    tokenizer_cleanup: TokenizerCleanup
    tracking: Tracking
    flower: Flower
    threads: int  # CPU threads of a training run; 0: all
    tokenizer_sample_max_lines: int  # held-out lines that a tokenizer's statistics read
    others: Others
    log_level: str
    log_format: str  # "json" for machines, "text" for people

    @property
    def host_id(self) -> str:
        """This machine's name as it stands in queue and owner names."""
        return socket.gethostname()
