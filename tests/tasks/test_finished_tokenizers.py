"""A run reads a tokenizer that is as it was published, or says which of its files is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import delete

from backends.loading import tokenizer_kind
from tasks import process, training
from tasks.job import Done, Job
from tasks.perform import perform
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, tokenizers
from trainer_app.store.lease import Artifact
from trainer_app.store.runs import Run
from trainer_app.store.tables import TokenizerRow

TEXT = b"".join(b"The %d-th sheep jumps over the fence.\n" % number for number in range(400))
SPEC = TrainSpec(
    model_family="gpt2",
    model_size="tiny",
    max_seq_len=8,
    max_steps=1,
    device="cpu",
    tokenizer_id="t1",
    corpus_path="a.txt",
    corpus_sha256=sha256(TEXT).hexdigest(),
)


@pytest.fixture
def folder(worker: Settings) -> Path:
    """A finished byte-level BPE."""
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "a.txt").write_bytes(TEXT)
    staging = worker.paths.runs / "staging"
    staging.mkdir(parents=True)
    trained = tokenizer_kind("bpe").train([TEXT.decode()], vocab_size=262, min_frequency=2)
    trained.save(staging)
    final = artifacts.tokenizer_directory(worker, "t1")
    artifacts.publish(staging, final, {"tokenizer_id": "t1"})
    spec = TokenizerSpec(method="bpe", vocab_size=262, corpus_sha256="0" * 64, tokenizer_id="t1")
    tokenizers.create(process.database(), spec, queue="light")
    return final


def train(work: Callable[[Job], Done | StopReason] = training.work) -> Run:
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    perform(run_id, hostname="train-0@here", work=work)
    return runs.get(process.database(), run_id)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def gone(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # to open it would be to wait for ever


def link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def link_to_a_copy(path: Path) -> None:
    """The same bytes for now; they can be edited elsewhere."""
    elsewhere = path.parents[1] / "copy"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def truncated_texts(path: Path) -> None:
    rule = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    edit(path, truncation=rule)


def normalized_texts(path: Path) -> None:
    edit(path, normalizer={"type": "Lowercase"})


def test_a_run_is_trained_with_a_tokenizer_that_is_as_it_was_published(folder: Path) -> None:
    run = train()

    assert run.status == "completed", run.message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "damage",
    [
        gone,
        folder_instead,
        fifo,
        link_out,
        link_to_a_copy,
        flipped_byte,
        truncated_texts,
        normalized_texts,
    ],
)
def test_a_run_with_a_tokenizer_that_was_damaged_fails_and_names_the_file(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)

    run = train()

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert f"{name} of t1 is damaged" in run.message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_a_file_of_a_tokenizer_that_its_manifest_does_not_list_is_refused(
    folder: Path, name: str
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop(name, None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    run = train()

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert f"t1 is damaged: its manifest does not list {name}" in run.message


@pytest.mark.parametrize("damaged", ["{", '{"files": []}'])
def test_a_damaged_manifest_of_a_tokenizer_is_named(folder: Path, damaged: str) -> None:
    (folder / "manifest.json").write_text(damaged)

    run = train()

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "t1: its manifest.json is damaged" in run.message


def reseal(folder: Path) -> None:
    """Edit the tokenizer, and make its manifest fit."""
    changed = folder.with_name("changed")
    folder.rename(changed)
    normalized_texts(changed / "tokenizer.json")
    (changed / "manifest.json").unlink()
    artifacts.publish(changed, folder, {"tokenizer_id": "t1"})


def test_a_tokenizer_that_was_edited_and_sealed_anew_is_not_the_one_that_was_published(
    folder: Path,
) -> None:
    job_id = tokenizers.get(process.database(), "t1").job_id
    claim = lease.claim(process.database(), job_id, "light", lease_seconds=60)
    assert claim is not None
    sealed = Artifact(storage="local", sha256=artifacts.pointer(folder).sha256)
    lease.finish(process.database(), claim, "completed", artifact=sealed)
    assert train().status == "completed"
    reseal(folder)

    run = train()

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "t1: its manifest.json is damaged" in run.message


def test_a_tokenizer_of_which_no_digest_was_kept_is_used_as_its_manifest_has_it(
    folder: Path,
) -> None:
    reseal(folder)

    assert train().status == "completed"


def row_gone(_folder: Path) -> None:
    with process.database().write() as connection:
        connection.execute(delete(TokenizerRow))


@pytest.mark.parametrize("deleted", [row_gone, shutil.rmtree])
def test_a_run_whose_tokenizer_was_deleted_meanwhile_says_so(
    folder: Path, deleted: Callable[[Path], None]
) -> None:
    def work(job: Job) -> Done | StopReason:
        deleted(folder)
        return training.work(job)

    run = train(work)

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "t1: there is no such tokenizer" in run.message


def test_a_tokenizer_that_was_published_with_a_gap_in_its_ids_is_refused(
    folder: Path, worker: Settings
) -> None:
    staging = worker.paths.runs / "again"
    shutil.copytree(folder, staging)
    content = json.loads((staging / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=lambda token: vocabulary[token])] = 2**31
    edit(staging / "tokenizer.json", model=content["model"] | {"merges": []})
    artifacts.publish(staging, folder, {"tokenizer_id": "t1"})

    run = train()

    assert (run.status, run.error_code) == ("failed", "MODEL_INCOMPATIBLE")
    assert "tokenizer.json: the ids of its 262 tokens are not 0 to 261" in run.message


def test_a_run_can_be_stopped_while_the_files_of_its_tokenizer_are_read(folder: Path) -> None:
    def work(job: Job) -> Done | StopReason:
        job.held.stop(StopReason.CANCEL)
        return training.work(job)

    assert train(work).status == "cancelled"
