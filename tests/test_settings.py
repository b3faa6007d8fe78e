"""The settings: what they read, what they refuse, and that .env.example tells the truth."""

import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from trainer_app.errors import SettingsError
from trainer_app.settings import Others, load_settings
from trainer_app.store.database import Database

EXAMPLE = Path(__file__).parents[1] / ".env.example"
JOB_SETTINGS = {
    "QUEUE_NAME": "night",
    "JOB_TIMEOUT_SEC": "61",
    "RESULT_TTL_SEC": "62",
    "FAILURE_TTL_SEC": "63",
    "RETRY_MAX": "4",
    "RETRY_INTERVALS_SEC": "5, 60",
}
BAD_VALUES = [
    ("DATABASE__URL", "mysql://localhost/trainer"),
    ("DATABASE__URL", "postgresql"),
    ("DATABASE__URL", "postgresqlx://["),
    ("GIT_COMMIT", "main"),
    ("GIT_COMMIT", "0123abc\n"),
    ("REDIS__URL", "http://localhost:6379"),
    ("REDIS__URL", "["),
    ("REDIS__URL", "unix:///run/redis.sock"),  # Celery does not take it
    ("REDIS__ENABLED", "perhaps"),
    ("SECURITY__ALLOW_OPEN", "2"),
    ("SECURITY__RATE_LIMIT", "many"),
    ("SECURITY__RATE_LIMIT", "0/minute"),
    ("SECURITY__RATE_LIMIT", "10/minute;"),
    ("SECURITY__RATE_LIMIT", "10/minute 5/second"),
    ("SECURITY__RATE_LIMIT", "10/minute\n"),
    ("API__HOST", ""),
    ("API__HOST", "two words"),
    ("API__HOST", "http://localhost"),
    ("API__HOST", "localhost\n"),
    ("API__PORT", "65536"),
    ("API__PORT", "-1"),
    ("API__PORT", "http"),
    ("API__PORT", ""),
    ("API__PORT", "1_8_2_3_3"),
    ("API__PORT", " 8000 "),
    ("API__PORT", "8000\n"),
    ("API__PORT", "\u0668\u0660"),  # digits to int()
    ("API__PORT", "9" * 5_000),
    ("API__THREADS", "7"),
    ("API__MAX_BODY_BYTES", "1023"),
    ("API__MAX_UPLOAD_BYTES", "0"),
    ("CELERY__QUEUE_NAME", "a,b"),
    ("CELERY__QUEUE_NAME", ""),
    ("CELERY__QUEUE_NAME", "night\n"),
    ("CELERY__JOB_TIMEOUT_SEC", "0"),
    ("CELERY__JOB_TIMEOUT_SEC", "1.5"),
    ("CELERY__RESULT_TTL_SEC", "59"),
    ("CELERY__FAILURE_TTL_SEC", "59"),
    ("CELERY__RETRY_MAX", "-1"),
    ("CELERY__RETRY_MAX", "101"),
    ("CELERY__RETRY_INTERVALS_SEC", "5,soon"),
    ("CELERY__RETRY_INTERVALS_SEC", "-5"),
    ("CELERY__RETRY_INTERVALS_SEC", "\u0665"),  # a digit to str.isdigit
    ("CELERY__RETRY_INTERVALS_SEC", ""),
    ("SECURITY__API_KEY", " "),
    ("SECURITY__API_KEY", ", ,"),
    ("JOBS__LEASE_SEC", "1.9"),
    ("JOBS__LEASE_SEC", "nan"),
    ("JOBS__LEASE_SEC", "inf"),
    ("JOBS__LEASE_SEC", "6_0"),
    ("JOBS__LEASE_SEC", " 60 "),
    ("JOBS__LEASE_SEC", "\u0666\u0660"),
    ("JOBS__BEAT_SEC", "0"),
    ("JOBS__BEAT_SEC", "30.1"),
    ("JOBS__CHECKPOINT_SEC", "-1"),
    ("JOBS__MAX_CRASHES", "0"),
    ("JOBS__SPARE_SEC", "-1"),
    ("APP__THREADS", "-1"),
    ("APP__THREADS", "all"),
    ("APP__TOKENIZER_SAMPLE_MAX_LINES", "0"),
    ("APP__DATA_BANK_API_URL", "ftp://bank"),
    ("APP__DATA_BANK_API_URL", "http://"),
    ("APP__DATA_BANK_API_URL", "http://["),
    ("APP__DATA_BANK_API_URL", "http://bank:port"),
    ("APP__DATA_BANK_API_URL", "http://bank/a b"),
    ("APP__DATA_BANK_API_URL", "http://user:pass@bank"),
    ("APP__DATA_BANK_API_URL", "http://bank?key=1"),
    ("API_GATEWAY_URL", "gateway"),
    ("APP__DATA_BANK_API_KEY", "two words"),
    ("APP__DATA_BANK_API_KEY", "line\n"),
    ("APP__DATA_BANK_MAX_BYTES", "0"),
    ("APP__DATA_BANK_RETRY_SEC", "-1"),
    ("APP__CLEANUP__ENABLED", "perhaps"),
    ("APP__CLEANUP__VERIFY_UPLOAD", "perhaps"),
    ("APP__CLEANUP__GRACE_PERIOD_SECONDS", "-1"),
    ("APP__CLEANUP__DRY_RUN", "perhaps"),
    ("APP__CORPUS_CACHE_CLEANUP__ENABLED", "perhaps"),
    ("APP__CORPUS_CACHE_CLEANUP__MAX_BYTES", "-1"),
    ("APP__CORPUS_CACHE_CLEANUP__MIN_FREE_BYTES", "-1"),
    ("APP__CORPUS_CACHE_CLEANUP__EVICTION_POLICY", "mru"),
    ("APP__TOKEN_CACHE_CLEANUP__ENABLED", "perhaps"),
    ("APP__TOKEN_CACHE_CLEANUP__MAX_BYTES", "-1"),
    ("APP__TOKEN_CACHE_CLEANUP__MIN_FREE_BYTES", "-1"),
    ("APP__TOKENIZER_CLEANUP__ENABLED", "perhaps"),
    ("APP__TOKENIZER_CLEANUP__MIN_UNUSED_DAYS", "-1"),
    ("LOGGING__LEVEL", "info"),
    ("LOGGING__LEVEL", "LOUD"),
    ("LOGGING__FORMAT", "xml"),
    ("WANDB__ENABLED", "maybe"),
    ("WANDB__PROJECT", ""),
    ("WANDB__PROJECT", "team/project"),
    ("WANDB__PROJECT", "p" * 129),
    ("FLOWER__HOST", "a/b"),
    ("FLOWER__PORT", "65536"),
    ("FLOWER__BASIC_AUTH", "secret"),
    ("FLOWER__BASIC_AUTH", "user:"),
    ("FLOWER__BASIC_AUTH", "one:secret,"),
    ("TORCH_INDEX", "pypi"),
    ("TORCH_INDEX", "https://one https://two"),
    ("HF_HOME", __file__),
    ("RQ__QUEUE_NAME", "a b"),
    ("RQ__RETRY_MAX", "none"),
    ("RQ__RETRY_INTERVALS_SEC", "soon"),
]
# Any text is a good value of these.
FREE_TEXT = {
    "APP_ENV",
    "APP__DATA_ROOT",
    "APP__ARTIFACTS_ROOT",
    "APP__RUNS_ROOT",
    "APP__LOGS_ROOT",
    "APP__CORPUS_ROOT",
    "WANDB_DIR",
}

# Settings whose names have no part that says whose they are.
OTHER_NAMES = {"APP_ENV", "API_GATEWAY_URL", "GIT_COMMIT", "HF_HOME", "TORCH_INDEX", "WANDB_DIR"}


class RecordingEnviron(dict[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked_for.add(name)
        return super().__getitem__(name)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine that runs the tests reaches them."""
    for name in os.environ:
        if "__" in name or name in OTHER_NAMES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def names_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The variables that load_settings asks the environment for."""
    recording = RecordingEnviron()
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", recording)
        load_settings()
    return recording.asked_for


def example_values() -> dict[str, str]:
    """NAME=default of each line of .env.example that is about a setting."""
    text = EXAMPLE.read_text("utf-8")
    return dict(re.findall(r"^#([A-Z][A-Z_]*)=(.*)$", text, flags=re.MULTILINE))


def test_the_example_lists_every_variable_that_is_read_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current_names = {name for name in names_read(monkeypatch) if not name.startswith("RQ__")}
    assert set(example_values()) == current_names


def test_each_variable_of_the_example_has_a_line_that_says_what_it_is() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    undescribed = [
        line
        for above, line in pairwise(lines)
        if re.match(r"#[A-Z][A-Z_]*=", line) and not above.startswith(("# ", "#API__HOST"))
    ]
    assert undescribed == []


def test_the_defaults_of_the_example_are_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    defaults = load_settings()
    for name, value in example_values().items():
        monkeypatch.setenv(name, value)
    from_example = load_settings()
    assert from_example.database_url == "sqlite:///data/trainer.db"
    assert defaults.database_url == f"sqlite:///{tmp_path}/data/trainer.db"
    assert from_example.redis.given
    assert (
        replace(
            from_example,
            database_url=defaults.database_url,
            redis=replace(from_example.redis, given=False),
        )
        == defaults
    )


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_in_the_name_of_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"{name}: ")


def test_every_variable_that_can_have_a_bad_value_is_tried_with_one() -> None:
    tried = {name for name, _ in BAD_VALUES if not name.startswith("RQ__")}
    assert tried == set(example_values()) - FREE_TEXT


def test_a_refusal_names_the_value_and_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API__PORT", "70000")
    with pytest.raises(SettingsError, match="65535") as refused:
        load_settings()
    assert "'70000'" in str(refused.value)


def test_a_refused_url_is_not_repeated_since_it_may_hold_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE__URL", "mysql://trainer:secret@db/trainer")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_a_refused_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER__BASIC_AUTH", "one:fine,hunter2")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


def test_a_refused_package_index_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "ftp://user:hunter2@index")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "::1", "::", "fe80::1%eth0", "localhost", "a-b.example"]
)
def test_any_name_or_address_is_a_host(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API__HOST", host)
    assert load_settings().api.host == host


def test_what_others_read_is_read_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings().others == Others(torch_index="", hugging_face_home=None)
    monkeypatch.setenv("TORCH_INDEX", "https://index.example/whl/cpu")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not-there-yet"))
    assert load_settings().others == Others(
        torch_index="https://index.example/whl/cpu", hugging_face_home=tmp_path / "not-there-yet"
    )


def test_tracking_keeps_its_files_with_the_data_unless_its_own_variable_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APP__DATA_ROOT", "elsewhere")
    assert load_settings().tracking.directory == tmp_path / "elsewhere"
    monkeypatch.setenv("WANDB_DIR", "/var/lib/wandb")
    assert load_settings().tracking.directory == Path("/var/lib/wandb")


@pytest.mark.parametrize("prefix", ["CELERY__", "RQ__"])
def test_job_settings_are_read_under_both_of_their_names(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in JOB_SETTINGS.items():
        monkeypatch.setenv(prefix + name, value)
    jobs = load_settings().jobs
    assert jobs.queue_name == "night"
    assert (jobs.timeout_seconds, jobs.result_ttl_seconds, jobs.failure_ttl_seconds) == (61, 62, 63)
    assert (jobs.retry_max, jobs.retry_intervals_seconds) == (4, (5, 60))


@pytest.mark.parametrize("name", JOB_SETTINGS)
def test_the_present_name_wins_over_the_old_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"CELERY__{name}", JOB_SETTINGS[name])
    expected = load_settings()
    monkeypatch.setenv(f"RQ__{name}", "77")
    assert load_settings() == expected


@pytest.mark.parametrize("name", ["DATA", "ARTIFACTS", "RUNS", "LOGS", "CORPUS"])
def test_an_empty_variable_names_no_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"APP__{name}_ROOT", raising=False)
    expected = load_settings()
    monkeypatch.setenv(f"APP__{name}_ROOT", "")
    assert load_settings() == expected


def test_folders_follow_the_data_root_unless_they_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APP__DATA_ROOT", "elsewhere")
    monkeypatch.setenv("APP__LOGS_ROOT", "/var/log/trainer")
    settings = load_settings()
    root = tmp_path / "elsewhere"
    assert settings.paths.data_root == root
    assert settings.paths.artifacts == root / "artifacts"
    assert settings.paths.uploads == root / "uploads"
    assert settings.paths.logs == Path("/var/log/trainer")
    assert settings.database_url == f"sqlite:///{root}/trainer.db"


@pytest.mark.parametrize(
    ("value", "keys"),
    [("", ()), ("one", ("one",)), ("one, two,", ("one", "two")), ("schlüssel", ("schlüssel",))],
)
def test_several_keys_are_separated_by_commas(
    value: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURITY__API_KEY", value)
    assert load_settings().security.api_keys == keys


@pytest.mark.parametrize(
    "key", ["first\nsecond", "a\rb", "a\x7fb", "\x01a", "good,a\x1fb", "\udcff"]
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURITY__API_KEY", key)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert refused.value.message == (
        "SECURITY__API_KEY: holds a character that no header can carry"
    )


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@db/x", "postgres://u:p@db/x", "postgresql+psycopg://db/x", "sqlite:////x"],
)
def test_both_databases_are_taken_by_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__URL", url)
    assert load_settings().database_url == url


@pytest.mark.parametrize(
    ("own", "gateway", "url"),
    [
        ("", "", None),
        ("http://bank:81/", "", "http://bank:81"),
        ("", "https://gate//", "https://gate/data-bank"),
        ("https://bank/v1", "https://gate", "https://bank/v1"),
    ],
)
def test_the_data_bank_has_an_address_of_its_own_or_one_behind_the_gateway(
    own: str, gateway: str, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__DATA_BANK_API_URL", own)
    monkeypatch.setenv("API_GATEWAY_URL", gateway)
    assert load_settings().data_bank.url == url


def test_the_key_of_the_data_bank_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP__DATA_BANK_API_KEY", "bank-secret")
    settings = load_settings()
    assert settings.data_bank.api_key == "bank-secret"
    assert "bank-secret" not in repr(settings)
    monkeypatch.setenv("APP__DATA_BANK_API_KEY", "bank secret")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_a_beat_follows_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS__LEASE_SEC", "12")
    jobs = load_settings().jobs
    assert (jobs.lease_seconds, jobs.beat_seconds) == (12.0, 2.0)


def test_the_host_has_a_name() -> None:
    assert load_settings().host_id


def test_any_data_root_holds_its_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "100% of it? é#%20"
    monkeypatch.setenv("APP__DATA_ROOT", str(root))
    monkeypatch.delenv("DATABASE__URL", raising=False)

    assert Database(load_settings().database_url).file == root / "trainer.db"
