"""Every setting, read from the environment once, in one place.

A bad value stops the start with the variable's name. ``.env.example`` lists all of them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from environs import Env, EnvError
from marshmallow.validate import OneOf, Range, Regexp

from trainer_app.errors import SettingsError
from trainer_app.settings_types import (
    Api,
    Cleanup,
    CorpusCacheCleanup,
    DataBank,
    Flower,
    Jobs,
    Others,
    Paths,
    Redis,
    Security,
    Settings,
    TokenCacheCleanup,
    TokenizerCleanup,
    Tracking,
)

__all__ = [
    "Api",
    "Cleanup",
    "CorpusCacheCleanup",
    "DataBank",
    "Flower",
    "Jobs",
    "Others",
    "Paths",
    "Redis",
    "Security",
    "Settings",
    "TokenCacheCleanup",
    "TokenizerCleanup",
    "Tracking",
    "load_settings",
]

_RATE_LIMIT = Regexp(
    r"([1-9][0-9]{0,8}/(second|minute|hour|day)(;(?=.)|\Z))*\Z",
    error="Must be like 100/minute, or several like 10/second;1000/day",
)
_HOST = Regexp(
    r"[A-Za-z0-9._:-]{1,253}(%[A-Za-z0-9._-]{1,32})?\Z",
    error="Must be the name or the address of a host",
)
_COMMIT = Regexp(r"([0-9a-f]{7,64})?\Z", error="Must be 7 to 64 hexadecimal digits, or empty")

# Python and marshmallow take underscores, blanks around it and the digits of all scripts as well.
_INTEGER = Regexp(r"[+-]?[0-9]+\Z", error="Not a valid integer")
_NUMBER = Regexp(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z", error="Not a valid number")


def load_settings() -> Settings:
    """Read the process's environment.

    Raises SettingsError, whose message starts with the variable's name, on a bad value.
    """
    env = Env()
    try:
        return _read(env)
    except EnvError as error:
        raise SettingsError(_worded(str(error))) from error


def _worded(message: str) -> str:
    """A refusal in our words; environs says: Environment variable "NAME" invalid: ['Why.']"""
    name, _, reason = message.removeprefix('Environment variable "').partition('" invalid: ')
    reason = reason.strip("[]'.")
    return f"{name}: {reason}; it is {os.environ[name]!r}"


def _read(env: Env) -> Settings:
    paths = _read_paths(env)
    file = quote(str(paths.data_root / "trainer.db"))  # a "?" or "%" would mean something else
    database_url = env.str("DATABASE__URL", f"sqlite:///{file}")
    if not re.match(r"(sqlite|postgres(ql)?)(\+\w+)?://", database_url):
        raise SettingsError("DATABASE__URL: must start with sqlite:// or postgresql://")
    return Settings(
        environment=env.str("APP_ENV", "development"),
        git_commit=env.str("GIT_COMMIT", "", validate=_COMMIT),
        paths=paths,
        redis=_read_redis(env),
        database_url=database_url,
        jobs=_read_jobs(env),
        security=Security(
            api_keys=_read_keys(env),
            allow_open=env.bool("SECURITY__ALLOW_OPEN", False),
            rate_limit=env.str("SECURITY__RATE_LIMIT", "", validate=_RATE_LIMIT),
        ),
        api=Api(
            host=env.str("API__HOST", "127.0.0.1", validate=_HOST),
            port=_int(env, "API__PORT", 8000, validate=Range(0, 65_535)),
            threads=_int(env, "API__THREADS", 512, validate=Range(8, 2_000)),
            # The longest text, api.fields.LONGEST_TEXT, in UTF-8, and what stands beside it.
            max_body_bytes=_int(env, "API__MAX_BODY_BYTES", 4_259_840, validate=Range(1_024)),
            max_upload_bytes=_int(env, "API__MAX_UPLOAD_BYTES", 68_719_476_736, validate=Range(1)),
        ),
        data_bank=_read_data_bank(env),
        cleanup=Cleanup(
            enabled=env.bool("APP__CLEANUP__ENABLED", False),
            verify_upload=env.bool("APP__CLEANUP__VERIFY_UPLOAD", True),
            grace_seconds=_float(
                env, "APP__CLEANUP__GRACE_PERIOD_SECONDS", 86_400.0, validate=Range(0.0, 1e9)
            ),
            dry_run=env.bool("APP__CLEANUP__DRY_RUN", False),
        ),
        corpus_cache_cleanup=CorpusCacheCleanup(
            enabled=env.bool("APP__CORPUS_CACHE_CLEANUP__ENABLED", False),
            max_bytes=_int(
                env, "APP__CORPUS_CACHE_CLEANUP__MAX_BYTES", 107_374_182_400, validate=Range(0)
            ),
            min_free_bytes=_int(
                env, "APP__CORPUS_CACHE_CLEANUP__MIN_FREE_BYTES", 10_737_418_240, validate=Range(0)
            ),
            eviction_policy=env.str(
                "APP__CORPUS_CACHE_CLEANUP__EVICTION_POLICY",
                "lru",
                validate=OneOf(["lru", "oldest"]),
            ),
        ),
        token_cache_cleanup=TokenCacheCleanup(
            enabled=env.bool("APP__TOKEN_CACHE_CLEANUP__ENABLED", True),
            max_bytes=_int(
                env, "APP__TOKEN_CACHE_CLEANUP__MAX_BYTES", 107_374_182_400, validate=Range(0)
            ),
            min_free_bytes=_int(
                env, "APP__TOKEN_CACHE_CLEANUP__MIN_FREE_BYTES", 1_073_741_824, validate=Range(0)
            ),
        ),
        tokenizer_cleanup=TokenizerCleanup(
            enabled=env.bool("APP__TOKENIZER_CLEANUP__ENABLED", False),
            min_unused_days=_float(
                env, "APP__TOKENIZER_CLEANUP__MIN_UNUSED_DAYS", 30.0, validate=Range(0.0, 36_500.0)
            ),
        ),
        tracking=_read_tracking(env, paths),
        flower=_read_flower(env),
        threads=_int(env, "APP__THREADS", 0, validate=Range(0, 1_024)),
        tokenizer_sample_max_lines=_int(
            env, "APP__TOKENIZER_SAMPLE_MAX_LINES", 10_000, validate=Range(1)
        ),
        others=_read_others(env),
        log_level=env.str(
            "LOGGING__LEVEL", "INFO", validate=OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])
        ),
        log_format=env.str("LOGGING__FORMAT", "json", validate=OneOf(["json", "text"])),
    )


def _int(env: Env, name: str, default: int, *, validate: Range) -> int:
    env.str(name, str(default), validate=_INTEGER)
    return env.int(name, default, validate=validate)


def _float(env: Env, name: str, default: float, *, validate: Range) -> float:
    env.str(name, str(default), validate=_NUMBER)
    return env.float(name, default, validate=validate)


def _read_paths(env: Env) -> Paths:
    root = _read_folder(env, "APP__DATA_ROOT", Path("data"))
    return Paths(
        data_root=root,
        artifacts=_read_folder(env, "APP__ARTIFACTS_ROOT", root / "artifacts"),
        runs=_read_folder(env, "APP__RUNS_ROOT", root / "runs"),
        logs=_read_folder(env, "APP__LOGS_ROOT", root / "logs"),
        corpus=_read_folder(env, "APP__CORPUS_ROOT", root / "corpus"),
        uploads=root / "uploads",
        tokens=root / "tokens",
        compiled=root / "compiled",
        corpus_cache=root / "corpus_cache",
    )


def _read_folder(env: Env, name: str, default: Path) -> Path:
    """Absolute. An empty value is none: as a path it would be the folder one happens to be in."""
    given = env.str(name, "")
    return (Path(given) if given else default).absolute()


def _read_redis(env: Env) -> Redis:
    given = env.str("REDIS__URL", "")
    url = given or "redis://127.0.0.1:6379/0"
    if not url.startswith(("redis://", "rediss://")):
        raise SettingsError("REDIS__URL: must start with redis:// or rediss://")
    return Redis(url=url, given=bool(given), enabled=env.bool("REDIS__ENABLED", True))


def _read_keys(env: Env) -> tuple[str, ...]:
    keys = tuple(filter(None, _listed(env, "SECURITY__API_KEY", "")))
    if not keys and env.str("SECURITY__API_KEY", ""):  # without one everybody would be let in
        raise SettingsError("SECURITY__API_KEY: is set, but holds no key")
    # A key that no client can send would lock everybody out. None is repeated: they are secrets.
    if any(re.search(r"[\0-\x08\x0a-\x1f\x7f\ud800-\udfff]", key) for key in keys):
        raise SettingsError("SECURITY__API_KEY: holds a character that no header can carry")
    return keys


def _read_data_bank(env: Env) -> DataBank:
    own = _read_http_url(env, "APP__DATA_BANK_API_URL")
    gateway = _read_http_url(env, "API_GATEWAY_URL")
    api_key = env.str("APP__DATA_BANK_API_KEY", "")
    if not re.fullmatch(r"[!-~]*", api_key):  # not repeated: it is a secret
        raise SettingsError("APP__DATA_BANK_API_KEY: must be visible ASCII characters")
    return DataBank(
        url=own or (f"{gateway}/data-bank" if gateway else None),
        api_key=api_key,
        max_bytes=_int(env, "APP__DATA_BANK_MAX_BYTES", 68_719_476_736, validate=Range(1)),
        retry_seconds=_float(env, "APP__DATA_BANK_RETRY_SEC", 300.0, validate=Range(0.0, 86_400.0)),
    )


def _read_http_url(env: Env, name: str) -> str:
    """An address without the slashes at its end. A refusal does not repeat it: see below."""
    url = env.str(name, "").rstrip("/")
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:  # a bracket without its partner, a port that is no number
        raise SettingsError(f"{name}: must be an address of http:// or https://") from None
    if url and (bad or not re.fullmatch(r"[!-~]+", url)):
        raise SettingsError(f"{name}: must be an address of http:// or https://")
    if parts.username is not None or parts.query or parts.fragment:
        # A password in an address would be shown wherever the address is.
        raise SettingsError(f"{name}: must hold no user, query or fragment")
    return url


def _read_jobs(env: Env) -> Jobs:
    def integer(name: str, default: int, low: int, high: int = 2**31 - 1) -> int:
        # RQ__* are the names that an older deployment of such a service may still set.
        fallback = _int(env, f"RQ__{name}", default, validate=Range(low, high))
        return _int(env, f"CELERY__{name}", fallback, validate=Range(low, high))

    def intervals(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        parts = _listed(env, name, ",".join(map(str, default)))
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise SettingsError(f"{name}: must be whole seconds, comma-separated")
        return tuple(int(part) for part in parts)

    def queue_name(name: str, default: str) -> str:
        # It stands in Redis keys and in comma-separated lists of queues.
        words = "Must be 1 to 64 letters, digits, dots, dashes or underscores"
        return env.str(name, default, validate=Regexp(r"[A-Za-z0-9._-]{1,64}\Z", error=words))

    lease_seconds = _float(env, "JOBS__LEASE_SEC", 60.0, validate=Range(2.0, 3_600.0))
    beats = Range(0.1, lease_seconds / 2)
    return Jobs(
        queue_name=queue_name("CELERY__QUEUE_NAME", queue_name("RQ__QUEUE_NAME", "trainer")),
        timeout_seconds=integer("JOB_TIMEOUT_SEC", 86_400, 1),
        result_ttl_seconds=integer("RESULT_TTL_SEC", 86_400, 60),
        failure_ttl_seconds=integer("FAILURE_TTL_SEC", 604_800, 60),
        retry_max=integer("RETRY_MAX", 1, 0, 100),
        retry_intervals_seconds=intervals(
            "CELERY__RETRY_INTERVALS_SEC", intervals("RQ__RETRY_INTERVALS_SEC", (300,))
        ),
        lease_seconds=lease_seconds,
        beat_seconds=_float(env, "JOBS__BEAT_SEC", lease_seconds / 6, validate=beats),
        checkpoint_seconds=_float(env, "JOBS__CHECKPOINT_SEC", 60.0, validate=Range(0.0, 86_400.0)),
        max_crashes=_int(env, "JOBS__MAX_CRASHES", 3, validate=Range(1, 100)),
        spare_seconds=_float(env, "JOBS__SPARE_SEC", 20.0, validate=Range(0.0, 86_400.0)),
    )


def _read_tracking(env: Env, paths: Paths) -> Tracking:
    # What W&B takes as the name of a project.
    words = "Must be 1 to 128 characters, without slashes, backslashes, #, ?, % and :"
    project = Regexp(r"[^/\\#?%:\n]{1,128}\Z", error=words)
    return Tracking(
        enabled=env.bool("WANDB__ENABLED", False),
        project=env.str("WANDB__PROJECT", "model-trainer", validate=project),
        directory=_read_folder(env, "WANDB_DIR", paths.data_root),
    )


def _read_flower(env: Env) -> Flower:
    basic_auth = env.str("FLOWER__BASIC_AUTH", "")
    if basic_auth and not all(re.fullmatch(r"[^:]+:.+", one) for one in basic_auth.split(",")):
        # Not repeated: it is a password.
        raise SettingsError("FLOWER__BASIC_AUTH: must be user:password, several comma-separated")
    return Flower(
        host=env.str("FLOWER__HOST", "127.0.0.1", validate=_HOST),
        port=_int(env, "FLOWER__PORT", 5555, validate=Range(0, 65_535)),
        basic_auth=basic_auth,
    )


def _read_others(env: Env) -> Others:
    index = env.str("TORCH_INDEX", "")
    if not re.fullmatch(
        r"((https?|file)://[!-~]+)?", index
    ):  # not repeated: it may hold a password
        raise SettingsError("TORCH_INDEX: must be an address of http://, https:// or file://")
    home = env.str("HF_HOME", "")
    with suppress(OSError):  # what cannot be looked at is the business of those who use it
        if home and Path(home).is_file():
            raise SettingsError(f"HF_HOME: must be a folder, or not there yet; it is {home!r}")
    return Others(torch_index=index, hugging_face_home=Path(home) if home else None)


def _listed(env: Env, name: str, default: str) -> list[str]:
    """A comma-separated value as its parts, spaces around them left out."""
    return [part.strip() for part in env.str(name, default).split(",")]
