"""Jobs that read what the data bank has: real training, real generation, on the CPU."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import generation, housekeeping, process, training
from tasks import tokenizers as tokenizer_training
from tasks.perform import perform
from tasks.slow_duties import SlowDuties
from tasks.worker import refuse_unfit_folders
from tests.databank_server import (
    Behaviour,
    DataBankServer,
    Request,
    cut,
    sha256,
    silent,
    status,
)
from trainer_app import artifacts
from trainer_app.cleanup.models import clean_models
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.json_spec import DIGEST_PENDING
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.core.stopping import never
from trainer_app.databank.client import DataBank
from trainer_app.errors import Unavailable
from trainer_app.restore import is_whole
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs, tokenizers, uploads
from trainer_app.store.database import Database
from trainer_app.store.lease import JobKind
from trainer_app.store.requests import Request as Asked
from trainer_app.store.runs import Run

TEXT = b"".join(b"The %d-th sheep jumps over the fence.\n" % number for number in range(400))
SPEC = TrainSpec(
    model_family="char_lstm",
    model_size="tiny",
    max_seq_len=16,
    max_steps=2,
    device="cpu",
    corpus_file_id="sheep",
    corpus_sha256=sha256(TEXT),
)


def post(**fields: object) -> str:
    changed = TrainSpec.from_json(json.dumps(json.loads(SPEC.to_json()) | fields))
    database = process.database()
    return runs.create(database, changed, queue="trainer", remote_corpora=True).run_id


def train(run_id: str) -> Run:
    perform(run_id, hostname="train-0@here", work=training.work)
    return runs.get(process.database(), run_id)


def generate(run_id: str) -> Asked:
    spec = GenerateSpec(prompt_text="The ", max_new_tokens=2, seed=1).to_json()
    database = process.database()
    asked = requests.create(database, JobKind.GENERATE, run_id, spec, queue="q", user_id=0)
    perform(asked.request_id, hostname="inference-0@here", work=generation.work)
    return requests.get(database, JobKind.GENERATE, run_id, asked.request_id)


def told(job_id: str) -> list[str]:
    path = Path(process.settings().paths.logs, f"{job_id}.jsonl")
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def delete_weights(run_id: str) -> Path:
    """What clean-up does when the grace period is over."""
    found = process.settings()
    rules = replace(found, cleanup=replace(found.cleanup, grace_seconds=0.0))
    with DataBank(found.data_bank) as bank:
        report = clean_models(process.database(), rules, bank, dry_run=False)
    assert [item.name for item in report.removed] == [run_id]
    folder = artifacts.model_directory(found, run_id)
    assert not is_whole(folder)
    return folder


@pytest.mark.parametrize("name", ["artifacts", "runs"])
def test_no_model_is_fetched_into_what_lies_beneath_a_disk(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "[]")  # set back afterwards
    monkeypatch.setenv("CELERY__RETRY_MAX", "0")
    process.settings.cache_clear()
    refuse_unfit_folders()
    server.put(TEXT, "sheep")
    run = train(post())
    folder = delete_weights(run.run_id)
    root = process.settings().paths.data_root / name
    root.rename(away := root.with_name("away"))
    root.mkdir()

    asked = generate(run.run_id)
    assert asked.status == "failed"
    assert asked.message == f"{root} is not mounted, or has lost its .trainer-folder"
    assert list(root.glob("*/[!.]*")) == []
    assert not process.spent.is_set()

    shutil.rmtree(root)
    away.rename(root)
    assert generate(run.run_id).status == "completed"
    assert is_whole(folder)


def test_a_model_is_trained_from_the_data_bank_into_it_and_comes_back_when_it_is_asked(
    server: DataBankServer,
) -> None:
    server.put(TEXT, "sheep")
    server.then("GET", cut(1_000))
    first = train(post())
    assert (first.status, first.artifact_storage) == ("completed", "data-bank"), first.message
    assert "fetching the corpus from the data bank" in told(first.run_id)
    before = generate(first.run_id)

    folder = delete_weights(first.run_id)
    after = generate(first.run_id)

    assert after.status == "completed", after.message
    assert after.result == before.result
    assert is_whole(folder)
    assert "fetching the model from the data bank" in told(after.request_id)
    assert list(process.settings().paths.runs.glob("restore-*")) == []

    (folder / "manifest.json").unlink()
    assert generate(first.run_id).result == before.result
    assert is_whole(folder)

    delete_weights(first.run_id)
    tuned = train(post(pretrained_run_id=first.run_id))
    assert tuned.status == "completed", tuned.message
    assert is_whole(folder)


def test_a_database_that_is_away_when_it_is_asked_for_an_archive_is_waited_for(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(TEXT, "sheep")
    run_id = train(post()).run_id
    folder = delete_weights(run_id)
    of_run, away = uploads.of_run, [Unavailable("the database is away or busy")] * 2

    def answer_later(database: Database, run_id: str) -> uploads.Archive | None:
        if away:
            raise away.pop()
        return of_run(database, run_id)

    monkeypatch.setattr(uploads, "of_run", answer_later)
    asked = generate(run_id)
    assert asked.status == "completed", asked.message
    assert is_whole(folder)


def test_a_tokenizer_and_a_run_with_it_are_trained_from_the_data_bank(
    server: DataBankServer,
) -> None:
    server.put(TEXT, "sheep")
    spec = TokenizerSpec(
        method="char", vocab_size=100, corpus_file_id="sheep", corpus_sha256=sha256(TEXT)
    )
    tokenizer = tokenizers.create(
        process.database(), spec, queue="trainer.light", remote_corpora=True
    )

    perform(tokenizer.job_id, hostname="light-0@here", work=tokenizer_training.work)

    assert tokenizers.get(process.database(), tokenizer.tokenizer_id).status == "completed"
    run = train(post(tokenizer_id=tokenizer.tokenizer_id))
    assert run.status == "completed", run.message


def test_a_run_that_died_while_it_was_sent_is_sent_and_not_trained_again(
    server: DataBankServer,
) -> None:
    server.put(TEXT, "sheep")
    run_id = post()

    def lose_the_worker(_request: Request) -> None:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()

    server.then("POST", lose_the_worker)
    lost = train(run_id)
    assert (lost.status, lost.error_code) == ("completed", "ARTIFACT_UPLOAD_FAILED")

    SlowDuties().one_pass(never)

    sent = runs.get(process.database(), run_id)
    assert (sent.error_code, sent.attempt, sent.artifact_storage) == (None, 1, "data-bank")
    assert sent.result is not None
    assert json.loads(sent.result)["steps"] == 2
    assert told(run_id).count("saving the model") == 1
    assert not (process.settings().paths.runs / run_id).exists()


def test_a_corpus_that_the_data_bank_lost_fails_its_run(server: DataBankServer) -> None:
    run = train(post())

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert len(server.requests) >= 2


def test_a_corpus_that_has_changed_fails_its_run(server: DataBankServer) -> None:
    server.put(TEXT + b"more\n", "sheep")

    run = train(post())

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert sha256(TEXT) in run.message


def test_a_data_bank_that_is_away_fails_a_run_only_after_its_retries(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()
    server.put(TEXT, "sheep")
    server.always("GET", status(500))
    run_id = post()

    first, second = train(run_id), train(run_id)

    assert first.status == "queued"
    assert "500" in first.message
    assert (second.status, second.error_code) == ("failed", "DATA_BANK_UNAVAILABLE")


def test_a_digest_that_was_not_known_at_the_post_is_asked_for_and_kept(
    server: DataBankServer,
) -> None:
    server.put(TEXT, "sheep")
    server.then("HEAD", status(500))

    run = train(post(corpus_sha256=""))

    assert run.status == "completed", run.message
    assert run.spec.corpus_sha256 == sha256(TEXT)
    assert DIGEST_PENDING not in run.spec.to_json()
    manifest = artifacts.read_manifest(artifacts.model_directory(process.settings(), run.run_id))
    assert sha256(TEXT) in json.dumps(manifest)
    assert "the data bank answers 500 to HEAD; trying again" in told(run.run_id)


def test_all_attempts_of_a_run_are_of_the_text_that_the_first_was_told(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()
    server.put(TEXT, "sheep")
    server.always("GET", status(500))
    run_id = post(corpus_sha256="")
    assert train(run_id).status == "queued"
    server.put(TEXT + b"more\n", "sheep")

    run = train(run_id)

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert run.spec.corpus_sha256 == sha256(TEXT)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(500), "500"),
        (status(401), "APP__DATA_BANK_API_KEY"),
        (status(302, Location="http://localhost:9/x"), "redirects to another host"),
        (status(200), "no SHA-256 as ETag"),
    ],
)
def test_a_run_whose_digest_nobody_tells_fails_with_the_reason(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch, answer: Behaviour, reason: str
) -> None:
    monkeypatch.setenv("CELERY__RETRY_INTERVALS_SEC", "0")
    process.settings.cache_clear()
    server.always("HEAD", answer)
    run_id = post(corpus_sha256="")

    first, second = train(run_id), train(run_id)

    assert first.status == "queued"
    assert (second.status, second.error_code) == ("failed", "DATA_BANK_UNAVAILABLE")
    assert reason in second.message


def test_a_corpus_that_was_uploaded_since_the_post_needs_no_data_bank(
    server: DataBankServer,
) -> None:
    server.always("HEAD", status(500))
    folder = process.settings().paths.uploads
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sha256(TEXT)}.txt").write_bytes(TEXT)

    run = train(post(corpus_sha256="", corpus_file_id=sha256(TEXT)))

    assert run.status == "completed", run.message
    assert run.spec.corpus_sha256 == sha256(TEXT)
    assert server.seen("HEAD") == []


def test_a_corpus_that_nobody_has_fails_a_run_whose_digest_is_not_known(
    server: DataBankServer,
) -> None:
    run = train(post(corpus_sha256=""))

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert "no corpus sheep" in run.message


def test_a_worker_that_knows_of_no_data_bank_cannot_ask_for_a_digest(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(TEXT, "sheep")
    monkeypatch.delenv("APP__DATA_BANK_API_URL", raising=False)
    process.settings.cache_clear()

    run = train(post(corpus_sha256=""))

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")


def test_a_tokenizer_asks_for_a_digest_that_was_not_known(server: DataBankServer) -> None:
    server.put(TEXT, "sheep")
    spec = TokenizerSpec(method="char", vocab_size=100, corpus_file_id="sheep", corpus_sha256="")
    tokenizer = tokenizers.create(
        process.database(), spec, queue="trainer.light", remote_corpora=True
    )

    perform(tokenizer.job_id, hostname="light-0@here", work=tokenizer_training.work)

    after = tokenizers.get(process.database(), tokenizer.tokenizer_id)
    assert (after.status, after.spec.corpus_sha256) == ("completed", sha256(TEXT)), after.message


def test_a_run_can_be_cancelled_while_its_corpus_is_fetched(server: DataBankServer) -> None:
    server.put(TEXT, "sheep")
    run_id = post()

    def cancel(request: Request) -> None:
        lease.request_cancel(process.database(), run_id)
        silent(request)

    server.then("GET", cancel)

    assert train(run_id).status == "cancelled"


def test_without_a_data_bank_a_corpus_that_is_not_here_is_not_found(worker: Settings) -> None:
    run = train(post())

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")


def test_a_path_is_never_looked_for_in_the_data_bank(server: DataBankServer) -> None:
    run = train(post(corpus_file_id=None, corpus_path="sheep"))

    assert (run.status, run.error_code) == ("failed", "CORPUS_CHANGED")
    assert server.requests == []


def test_a_tokenizer_whose_files_were_deleted_meanwhile_is_named(server: DataBankServer) -> None:
    server.put(TEXT, "sheep")
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id="gone")
    tokenizers.create(process.database(), spec, queue="light")

    run = train(post(model_family="gpt2", tokenizer_id="gone"))

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "gone" in run.message


def test_a_model_that_the_data_bank_lost_is_told(server: DataBankServer) -> None:
    server.put(TEXT, "sheep")
    run = train(post())
    delete_weights(run.run_id)
    server.files.clear()

    asked = generate(run.run_id)

    assert asked.status == "queued"  # the data bank may find it again
    assert "the model is lost" in asked.message


def test_a_model_that_is_nowhere_is_not_ready(worker: Settings) -> None:
    asked = generate(post())

    assert (asked.status, asked.error_code) == ("failed", "NOT_READY")


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "manifest.json"])
def test_a_finished_model_that_is_damaged_here_and_nowhere_else_is_told_by_its_file(
    worker: Settings, name: str
) -> None:
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "sheep.txt").write_bytes(TEXT)
    run = train(post(corpus_file_id=None, corpus_path="sheep.txt"))
    file = artifacts.model_directory(worker, run.run_id) / name
    file.write_bytes(file.read_bytes() + b"x")

    asked = generate(run.run_id)
    tuned = train(post(corpus_file_id=None, corpus_path="sheep.txt", pretrained_run_id=run.run_id))

    for ended in (asked, tuned):
        assert (ended.status, ended.error_code) == ("failed", "MODEL_INCOMPATIBLE")
        assert f"{run.run_id}: its {name} is damaged or gone" in str(ended.message)


def reseal(folder: Path) -> None:
    """What somebody does who changes a model and makes its manifest fit."""
    (folder / "README.md").write_text("another card")
    manifest = artifacts.read_manifest(folder)
    (folder / "manifest.json").unlink()
    changed = folder.with_name("changed")
    folder.rename(changed)
    artifacts.publish(changed, folder, manifest)
    assert is_whole(folder)


def test_a_model_that_was_changed_and_sealed_anew_is_refused(worker: Settings) -> None:
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "sheep.txt").write_bytes(TEXT)
    run = train(post(corpus_file_id=None, corpus_path="sheep.txt"))
    reseal(artifacts.model_directory(worker, run.run_id))

    asked = generate(run.run_id)
    tuned = train(post(corpus_file_id=None, corpus_path="sheep.txt", pretrained_run_id=run.run_id))

    for ended in (asked, tuned):
        assert (ended.status, ended.error_code) == ("failed", "MODEL_INCOMPATIBLE")
        assert f"{run.run_id}: its manifest.json is damaged or gone" in str(ended.message)


def test_a_model_that_was_sealed_anew_comes_back_from_the_data_bank(
    server: DataBankServer,
) -> None:
    server.put(TEXT, "sheep")
    run = train(post())
    folder = artifacts.model_directory(process.settings(), run.run_id)
    before = artifacts.pointer(folder)
    reseal(folder)

    assert generate(run.run_id).status == "completed"
    assert artifacts.pointer(folder) == before


def test_a_model_of_a_data_bank_that_is_no_longer_set_is_not_waited_for(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(TEXT, "sheep")
    run = train(post())
    delete_weights(run.run_id)
    monkeypatch.delenv("APP__DATA_BANK_API_URL")
    process.settings.cache_clear()

    asked = generate(run.run_id)

    assert (asked.status, asked.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "its model.safetensors is damaged or gone" in str(asked.message)
    assert "the data bank has it" in str(asked.message)
