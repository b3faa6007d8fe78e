"""Starting runs: what is accepted, what is refused, and what happens around it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from backends.registry import MODEL_FAMILIES, MODEL_SIZES, OWN_TOKENIZERS
from tests.api.conftest import ON_BOTH_DATABASES
from tests.contract_defaults import TRAIN_DEFAULTS
from trainer_app.api.accept import wake
from trainer_app.api.corpus_choice import KnownFiles
from trainer_app.artifacts import publish, tokenizer_directory
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import runs
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World
    from tests.conftest import RedisServer

Body = dict[str, object]
Make = Callable[[Settings], FlaskClient]


def train(client: FlaskClient, body: Body, **headers: str) -> TestResponse:
    return client.post("/runs/train", json=body, headers=list(headers.items()))


def refused(response: TestResponse, status: int, code: str, field: str) -> None:
    """The answer has this status and code, and names the field."""
    answer = response.get_json()
    assert (response.status_code, answer["code"]) == (status, code)
    assert field in answer["message"]


def messages(world: World, queue: str = "trainer") -> int:
    with redis.Redis.from_url(world.settings.redis.url) as client:
        return sum(client.llen(key) for key in client.scan_iter(f"{queue}*", _type="list"))


@ON_BOTH_DATABASES
def test_a_run_is_accepted_queued_and_announced(
    client: FlaskClient, world: World, body: Body
) -> None:
    response = train(client, body)
    assert response.status_code == 202
    run_id = response.get_json()["run_id"]
    assert response.get_json() == {"run_id": run_id, "job_id": run_id}
    assert response.headers["Location"] == f"/runs/{run_id}"
    assert client.get(response.headers["Location"]).get_json()["status"] == "queued"
    assert messages(world) == 1


def test_what_is_left_out_has_the_defaults_of_the_contract(client: FlaskClient, body: Body) -> None:
    del body["model_size"]
    run_id = train(client, body).get_json()["run_id"]
    spec = client.get(f"/runs/{run_id}").get_json()["spec"]
    assert {name: spec[name] for name in TRAIN_DEFAULTS} == TRAIN_DEFAULTS
    assert len(spec["corpus_sha256"]) == 64


@pytest.mark.parametrize(
    ("optimizer", "decay"), [("adamw", 0.1), ("muon", 0.1), ("adam", 0.0), ("sgd", 0.0)]
)
def test_a_weight_decay_that_is_left_out_is_that_of_the_optimizer(
    client: FlaskClient, body: Body, optimizer: str, decay: float
) -> None:
    def shown(asked: Body) -> object:
        run_id = train(client, asked).get_json()["run_id"]
        return client.get(f"/runs/{run_id}").get_json()["spec"]["weight_decay"]

    assert shown(body | {"optimizer": optimizer}) == decay
    assert shown(body | {"optimizer": optimizer, "weight_decay": 0.1}) == 0.1
    assert shown(body | {"optimizer": optimizer, "weight_decay": 0}) == 0


@ON_BOTH_DATABASES
def test_every_field_reaches_the_spec(client: FlaskClient, world: World, body: Body) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    asked = body | {
        "max_seq_len": 64,
        "num_epochs": 2,
        "max_steps": 10,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "weight_decay": 0.2,
        "optimizer": "sgd",
        "gradient_clipping": 0,
        "holdout_fraction": 0.2,
        "test_split_ratio": 0.1,
        "seed": 2**32 - 1,
        "device": "cpu",
        "precision": "fp32",
        "deterministic": True,
        "torch_compile": "off",
        "data_num_workers": 1,
        "data_pin_memory": True,
        "eval_steps": 5,
        "logging_steps": 1,
        "early_stopping_patience": 0,
        "freeze_embed": True,
        "finetune_lr_cap": 0.1,
        "sample_prompts": ["Once\nupon"],
        "user_id": 2**63 - 1,
        "queue": "trainer.host.gpu0",
        "priority": 9,
        "tags": ["x"],
    }
    run = runs.get(world.database, train(client, asked).get_json()["run_id"])
    spec = asdict(run.spec)
    assert {name: spec[name] for name in asked} == asked | {
        "sample_prompts": ("Once\nupon",),
        "tags": ("x",),
    }
    assert set(TrainSpec.__slots__) == set(asked) | {
        "corpus_file_id",
        "corpus_sha256",
        "model_family",
        "pretrained_run_id",
    }
    assert run.queue == "trainer.host.gpu0"


def test_a_run_trains_on_one_gpu(client: FlaskClient, body: Body) -> None:
    accepted = train(client, body | {"gpus": 1})
    assert accepted.status_code == 202
    run = client.get(f"/runs/{accepted.get_json()['run_id']}").get_json()
    assert run["spec"]["gpus"] == 1
    refused(train(client, body | {"gpus": 2}), 422, "INVALID_INPUT", "gpus")


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_every_size_of_every_family_can_be_asked_for(
    client: FlaskClient, world: World, body: Body, family: str
) -> None:
    world.tokenizer("fitting", OWN_TOKENIZERS.get(family, "bpe"))
    for size in MODEL_SIZES[family]:
        asked = body | {"model_family": family, "model_size": size, "tokenizer_id": "fitting"}
        assert train(client, asked).status_code == 202


def test_a_family_has_its_own_sizes(client: FlaskClient, body: Body) -> None:
    asked = body | {"model_family": "char_lstm", "model_size": "xl"}
    refused(train(client, asked), 422, "INVALID_INPUT", "model_size")


def test_a_character_model_needs_no_tokenizer(client: FlaskClient, body: Body) -> None:
    asked = body | {"model_family": "char_lstm", "tokenizer_id": None}
    assert train(client, asked).status_code == 202


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tokenizer_id": None}, "tokenizer_id"),
        ({"corpus_path": None}, "corpus_file_id"),
        ({"corpus_file_id": "0" * 64}, "corpus_file_id"),
        ({"device": "cpu", "precision": "fp16"}, "precision"),
        ({"device": "cpu", "precision": "bf16"}, "precision"),
        ({"holdout_fraction": 0.5, "test_split_ratio": 0.5}, "test_split_ratio"),
        ({"holdout_fraction": 0.51}, "holdout_fraction"),
        ({"queue": "trainer.host.gpu9"}, "queue"),
        ({"queue": "trainer.light"}, "queue"),
        ({"priority": 10}, "priority"),
    ],
)
def test_what_does_not_go_together_is_refused_and_the_field_named(
    client: FlaskClient, world: World, body: Body, change: Body, field: str
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    response = train(client, body | change)
    refused(response, 422, "INVALID_INPUT", field)
    assert response.get_json()["details"][0]["field"] == field
    assert client.get("/runs").get_json()["data"] == []
    assert messages(world) == 0


def test_an_unknown_queue_is_answered_with_those_there_are(
    client: FlaskClient, world: World, body: Body
) -> None:
    world.worker("trainer", "trainer.host.gpu0")
    message = train(client, body | {"queue": "x"}).get_json()["message"]
    assert "trainer, trainer.host.gpu0" in message


BAD_PATHS = [
    "missing.txt",
    "../outside.txt",
    "sub/../../outside.txt",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "..\\outside.txt",
    "C:\\tale.txt",
    "CON",
    "%2e%2e%2foutside.txt",
    "%252e%252e/outside.txt",
    "\uff0e\uff0e/outside.txt",
    "./tale.txt",
    "sub//tale.txt",
    "tale.txt/",
    "tale.txt/x",
    ".",
    "sub",
    "link.txt",
    "linked/tale.txt",
    "inner-link.txt",
    "fifo",
    "zero",
    "environ",
    "secret.txt",
    "x" * 1_000,
    "x/" * 400 + "x",
]


@pytest.fixture
def trap(world: World, tmp_path: Path) -> World:
    """A corpus root with all that must not be opened in it."""
    root = world.settings.paths.corpus
    world.corpus()
    world.corpus("sub/tale.txt")
    (root.parent / "outside.txt").write_text("secret")
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    (root / "linked").symlink_to(root.parent)
    (root / "inner-link.txt").symlink_to(root / "tale.txt")
    os.mkfifo(root / "fifo")
    (root / "zero").symlink_to("/dev/zero")
    (root / "environ").symlink_to("/proc/self/environ")
    world.corpus("secret.txt")
    (root / "secret.txt").unlink()
    (root / "secret.txt").mkdir(0)
    return world


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_is_missing_or_forbidden_gets_one_answer(
    client: FlaskClient, trap: World, body: Body, path: str
) -> None:
    response = train(client, body | {"corpus_path": path})
    assert (response.status_code, response.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")
    expected = "corpus_path: there is no such file under the corpus root"
    assert response.get_json()["message"] == expected
    assert client.get("/runs").get_json()["data"] == []


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 10_000, "\ud800"])
def test_a_path_that_cannot_be_is_refused(client: FlaskClient, body: Body, path: str) -> None:
    refused(train(client, body | {"corpus_path": path}), 422, "INVALID_INPUT", "corpus_path")


def test_a_path_may_lead_through_folders(client: FlaskClient, world: World, body: Body) -> None:
    world.corpus("a/b/c ä.txt")
    assert train(client, body | {"corpus_path": "a/b/c ä.txt"}).status_code == 202


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "CORPUS_EMPTY"), (b"\x89PNG\r\n\x1a\n", "CORPUS_NOT_TEXT")]
)
def test_a_corpus_that_cannot_be_trained_on_is_refused(
    client: FlaskClient, world: World, body: Body, data: bytes, code: str
) -> None:
    (world.settings.paths.corpus / "bad.txt").write_bytes(data)
    response = train(client, body | {"corpus_path": "bad.txt"})
    assert (response.status_code, response.get_json()["code"]) == (422, code)


def test_a_corpus_that_has_changed_has_another_digest(
    client: FlaskClient, world: World, body: Body
) -> None:
    def digest() -> str:
        run_id = train(client, body).get_json()["run_id"]
        return runs.get(world.database, run_id).spec.corpus_sha256

    first, again = digest(), digest()
    world.corpus(text="another text\n" * 100)
    assert first == again != digest()


def test_an_uploaded_corpus_is_its_own_digest(
    client: FlaskClient, world: World, body: Body
) -> None:
    file_id = client.post("/corpora", data=b"text\n" * 200, content_type="text/plain").get_json()[
        "file_id"
    ]
    asked = body | {"corpus_path": None, "corpus_file_id": file_id}
    run_id = train(client, asked).get_json()["run_id"]
    assert runs.get(world.database, run_id).spec.corpus_sha256 == file_id


@pytest.mark.parametrize("file_id", ["0" * 64, "../x", "..", "a/b", "ä"])
def test_an_unknown_corpus_is_not_found(client: FlaskClient, body: Body, file_id: str) -> None:
    asked = body | {"corpus_path": None, "corpus_file_id": file_id}
    refused(train(client, asked), 404, "CORPUS_NOT_FOUND", "corpus_file_id: ")


@pytest.mark.parametrize("tokenizer_id", ["none", "../words", "..", "a/b"])
def test_an_unknown_tokenizer_is_not_found(
    client: FlaskClient, body: Body, tokenizer_id: str
) -> None:
    response = train(client, body | {"tokenizer_id": tokenizer_id})
    refused(response, 404, "TOKENIZER_NOT_FOUND", "tokenizer_id: ")
    assert tokenizer_id in response.get_json()["message"]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED])
def test_a_tokenizer_must_be_finished(
    client: FlaskClient, world: World, body: Body, status: Status
) -> None:
    asked = body | {"tokenizer_id": world.tokenizer("half", status=status)}
    refused(train(client, asked), 409, "NOT_READY", "tokenizer_id")


def test_a_tokenizer_whose_folder_is_gone_is_refused(
    client: FlaskClient, world: World, body: Body
) -> None:
    shutil.rmtree(tokenizer_directory(world.settings, "words"))
    refused(train(client, body), 409, "MODEL_INCOMPATIBLE", "tokenizer_id: the files of words")
    assert runs.list_(world.database).items == []


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(b"{")


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("tokenizer_config.json"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(remove, "gone"), (cut, "it has 1 bytes, not 2"), (link, "gone"), (fifo, "gone")],
)
def test_a_tokenizer_that_has_lost_a_file_or_bytes_is_refused_and_the_file_named(
    client: FlaskClient, world: World, body: Body, damage: Callable[[Path], None], reason: str
) -> None:
    damage(tokenizer_directory(world.settings, "words") / "tokenizer.json")
    response = train(client, body)
    refused(response, 409, "MODEL_INCOMPATIBLE", "tokenizer_id: tokenizer.json of words")
    assert reason in response.get_json()["message"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [('{"files": {}}', "does not list tokenizer.json"), ("{", "manifest.json is damaged")],
)
def test_a_tokenizer_whose_manifest_is_damaged_is_refused(
    client: FlaskClient, world: World, body: Body, manifest: str, reason: str
) -> None:
    (tokenizer_directory(world.settings, "words") / "manifest.json").write_text(manifest)
    refused(train(client, body), 409, "MODEL_INCOMPATIBLE", reason)


def test_a_tokenizer_that_was_edited_and_sealed_anew_is_not_the_one_that_was_published(
    client: FlaskClient, world: World, body: Body
) -> None:
    asked = body | {"tokenizer_id": world.tokenizer("sealed", sealed=True)}
    assert train(client, asked).status_code == 202
    folder = tokenizer_directory(world.settings, "sealed")
    changed = folder.with_name("changed")
    folder.rename(changed)
    (changed / "tokenizer.json").write_text("{ }")
    (changed / "manifest.json").unlink()
    publish(changed, folder, {"tokenizer_id": "sealed"})
    named = "tokenizer_id: sealed: its manifest.json is damaged"
    refused(train(client, asked), 409, "MODEL_INCOMPATIBLE", named)


def test_a_character_model_takes_no_other_tokenizer(
    client: FlaskClient, world: World, body: Body
) -> None:
    asked = body | {"model_family": "char_lstm"}
    refused(train(client, asked), 409, "MODEL_INCOMPATIBLE", "tokenizer_id")
    asked["tokenizer_id"] = world.tokenizer("letters", "char")
    assert train(client, asked).status_code == 202


def test_a_transformer_takes_a_character_tokenizer(
    client: FlaskClient, world: World, body: Body
) -> None:
    asked = body | {"tokenizer_id": world.tokenizer("letters", "char")}
    assert train(client, asked).status_code == 202


@pytest.mark.parametrize("base", ["run-none", "../x"])
def test_an_unknown_base_run_is_not_found(client: FlaskClient, body: Body, base: str) -> None:
    response = train(client, body | {"pretrained_run_id": base})
    refused(response, 404, "RUN_NOT_FOUND", "pretrained_run_id: ")
    assert base in response.get_json()["message"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tags", ["x" * 65], "must have 1 to 64 characters, not 65"),
        ("tags", ["x"] * 17, "must have 0 to 16 items, not 17"),
        ("tags", "x", "'x' is not a list"),
        ("tags", None, "null is not a list"),
        ("seed", None, "null is not an integer"),
        ("learning_rate", None, "null is not a number"),
        ("freeze_embed", None, "null is not true or false"),
        ("model_family", None, "null is not a string"),
    ],
)
def test_a_message_says_what_was_sent_and_what_is_allowed(
    client: FlaskClient, body: Body, field: str, value: object, message: str
) -> None:
    response = train(client, body | {field: value})
    assert response.status_code == 422
    (detail,) = response.get_json()["details"]
    assert (detail["field"].partition(".")[0], detail["message"]) == (field, message)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED])
def test_a_base_run_must_be_completed(
    client: FlaskClient, world: World, body: Body, status: Status
) -> None:
    asked = body | {"pretrained_run_id": world.run(status, model_size="tiny")}
    refused(train(client, asked), 409, "NOT_READY", "pretrained_run_id")


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_size", "mini"), ("tokenizer_id", "others"), ("model_family", "char_lstm")],
)
def test_a_base_run_must_be_of_the_same_kind(
    client: FlaskClient, world: World, body: Body, name: str, value: str
) -> None:
    world.tokenizer("others")
    base = {"model_size": "tiny", name: value}
    asked = body | {"pretrained_run_id": world.run(Status.COMPLETED, **base)}
    refused(train(client, asked), 409, "MODEL_INCOMPATIBLE", name)


@pytest.mark.parametrize(
    ("base", "wanted", "message"),
    [
        (None, "letters", "letters is not the tokenizer of {}, which trained its own: leave "),
        ("letters", None, "{} was trained with letters: give that one"),
    ],
)
def test_a_tokenizer_that_a_run_trained_itself_is_told_in_words(
    client: FlaskClient,
    world: World,
    body: Body,
    base: str | None,
    wanted: str | None,
    message: str,
) -> None:
    world.tokenizer("letters", "char")
    kind = {"model_family": "char_lstm", "model_size": "tiny"}
    run_id = world.run(Status.COMPLETED, **kind, tokenizer_id=base)
    world.model(run_id)
    asked = body | kind | {"pretrained_run_id": run_id, "tokenizer_id": wanted}
    start = f"tokenizer_id: {message.format(run_id)}"
    refused(train(client, asked), 409, "MODEL_INCOMPATIBLE", start)
    assert train(client, asked | {"tokenizer_id": base}).status_code == 202


def test_a_base_run_must_read_as_much_at_once(
    client: FlaskClient, world: World, body: Body
) -> None:
    base = world.run(Status.COMPLETED, model_size="tiny", max_seq_len=64)
    # Trained on less, but its model is still the one that reads 64 tokens.
    tuned = world.run(Status.COMPLETED, model_size="tiny", max_seq_len=32, pretrained_run_id=base)
    for run_id in (base, tuned):
        world.model(run_id)
        asked = body | {"pretrained_run_id": run_id, "max_seq_len": 65}
        refused(train(client, asked), 409, "MODEL_INCOMPATIBLE", "max_seq_len: 65 is beyond the 64")
        assert train(client, asked | {"max_seq_len": 64}).status_code == 202


def test_a_base_run_that_reads_on_for_ever_takes_any_length(
    client: FlaskClient, world: World, body: Body
) -> None:
    kind = {"model_family": "char_lstm", "model_size": "tiny", "tokenizer_id": None}
    base = world.run(Status.COMPLETED, **kind, max_seq_len=64)
    world.model(base)
    asked = body | kind | {"pretrained_run_id": base, "max_seq_len": 128}
    assert train(client, asked).status_code == 202


def test_a_completed_run_can_be_gone_on_from(client: FlaskClient, world: World, body: Body) -> None:
    base = world.run(Status.COMPLETED, model_size="tiny")
    world.model(base)
    assert train(client, body | {"pretrained_run_id": base}).status_code == 202


@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_a_base_run_whose_model_lost_a_file_is_refused_with_its_name(
    client: FlaskClient, world: World, body: Body, name: str
) -> None:
    base = world.run(Status.COMPLETED, model_size="tiny")
    (world.model(base) / name).unlink()
    asked = body | {"pretrained_run_id": base}
    refused(
        train(client, asked), 409, "MODEL_INCOMPATIBLE", f"pretrained_run_id: {base}: its {name}"
    )


@ON_BOTH_DATABASES
def test_a_repeat_with_the_same_key_gets_the_first_answer(
    client: FlaskClient, world: World, body: Body
) -> None:
    first = train(client, body, **{"Idempotency-Key": "one"})
    world.corpus(text="")  # even where it could not be started any more
    again = train(client, body, **{"Idempotency-Key": "one"})
    assert (again.status_code, again.get_json()) == (202, first.get_json())
    assert again.headers["Location"] == first.headers["Location"]
    assert messages(world) == 1


@ON_BOTH_DATABASES
def test_the_same_key_with_another_body_is_refused(client: FlaskClient, body: Body) -> None:
    train(client, body, **{"Idempotency-Key": "one"})
    response = train(client, body | {"seed": 1}, **{"Idempotency-Key": "one"})
    refused(response, 422, "INVALID_INPUT", "Idempotency-Key")
    assert len(client.get("/runs").get_json()["data"]) == 1


def test_another_key_starts_another_run(client: FlaskClient, body: Body) -> None:
    ids = {train(client, body, **{"Idempotency-Key": key}).get_json()["run_id"] for key in "ab"}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ä"])
def test_a_bad_key_is_refused(client: FlaskClient, body: Body, key: str) -> None:
    response = client.post(
        "/runs/train", json=body, environ_overrides={"HTTP_IDEMPOTENCY_KEY": key}
    )
    refused(response, 422, "INVALID_INPUT", "Idempotency-Key")


@ON_BOTH_DATABASES
def test_one_key_at_once_starts_one_run(client: FlaskClient, body: Body) -> None:
    app = client.application
    answers: list[str] = []

    def post() -> None:
        response = train(app.test_client(), body, **{"Idempotency-Key": "one"})
        answers.append(response.get_json()["run_id"])

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert len(set(answers)) == 1


@ON_BOTH_DATABASES
def test_the_request_id_goes_with_the_job(client: FlaskClient, world: World, body: Body) -> None:
    run_id = train(client, body, **{"X-Request-ID": "abc"}).get_json()["run_id"]
    assert world.claim(run_id).request_id == "abc"


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_written_while_redis_is_away(
    world: World, make_client: Make, body: Body, enabled: bool
) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0", enabled=enabled)
    response = train(make_client(replace(world.settings, redis=away)), body)
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
    assert response.headers["Retry-After"]
    assert runs.list_(world.database).items == []


def test_a_hung_redis_is_noticed_within_five_seconds(
    client: FlaskClient, world: World, body: Body, redis_server: RedisServer
) -> None:
    redis_server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        response = train(client, body)
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    assert time.monotonic() - began < 5
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
    assert runs.list_(world.database).items == []


def test_a_locked_database_is_noticed_within_five_seconds(
    client: FlaskClient, world: World, body: Body
) -> None:
    with world.database.write() as connection:
        connection.execute(text("DELETE FROM metrics"))
        began = time.monotonic()
        response = train(client, body)
        assert time.monotonic() - began < 5
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")


def test_a_database_that_goes_away_after_the_row_does_no_harm(
    settings: Settings, make_client: Make, tmp_path: Path
) -> None:
    client = make_client(replace(settings, database_url=f"sqlite:///{tmp_path}"))
    with client.application.app_context():
        wake("run-committed")


def test_digests_are_remembered_within_bounds(world: World) -> None:
    files = KnownFiles()
    names = [world.corpus(f"{number}.txt", f"text {number}") for number in range(300)]
    root = world.settings.paths.corpus
    found = [files.of(root, name).sha256 for name in names]
    assert [files.of(root, name).sha256 for name in names] == found
    assert len(set(found)) == 300


def test_nothing_is_written_while_the_database_is_away(
    settings: Settings, make_client: Make, body: Body, tmp_path: Path
) -> None:
    response = train(make_client(replace(settings, database_url=f"sqlite:///{tmp_path}")), body)
    assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
