"""A tokenizer as its worker trains it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from tasks import process
from tasks import tokenizers as tokenizer_training
from tasks.job import Done, Job
from tasks.perform import perform
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec
from trainer_app.settings import Settings
from trainer_app.store import tokenizers

TEXT = b"one line\nand another\n" * 20


def queued(settings: Settings, vocab_size: int) -> tokenizers.Tokenizer:
    """A tokenizer of characters, at which a worker was killed before."""
    settings.paths.corpus.mkdir(parents=True)
    (settings.paths.corpus / "a.txt").write_bytes(TEXT)
    spec = TokenizerSpec(
        method="char",
        vocab_size=vocab_size,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
        holdout_fraction=0.0,
    )
    made = tokenizers.create(process.database(), spec, queue="trainer.light")
    (settings.paths.runs / f"{made.job_id}-0").mkdir(parents=True)
    return made


@pytest.mark.parametrize(("size", "status"), [(100, "completed"), (5, "failed")])
def test_neither_an_end_nor_a_killed_attempt_leaves_files_behind(
    worker: Settings, size: int, status: str
) -> None:
    made = queued(worker, size)

    perform(made.job_id, hostname="light-0@here", work=tokenizer_training.work)

    assert tokenizers.get(process.database(), made.tokenizer_id).status == status
    assert list(worker.paths.runs.iterdir()) == []


def test_a_finished_tokenizer_is_sealed_with_the_digest_of_its_manifest(worker: Settings) -> None:
    made = queued(worker, 100)
    assert made.artifact_sha256 is None

    perform(made.job_id, hostname="light-0@here", work=tokenizer_training.work)

    folder = artifacts.tokenizer_directory(worker, made.tokenizer_id)
    sealed = tokenizers.get(process.database(), made.tokenizer_id).artifact_sha256
    assert sealed == artifacts.pointer(folder).sha256


def test_a_tokenizer_whose_worker_shuts_down_is_queued_again(worker: Settings) -> None:
    made = queued(worker, 100)

    def work(job: Job) -> Done | StopReason:
        job.held.stop(StopReason.DRAIN)
        return tokenizer_training.work(job)

    perform(made.job_id, hostname="light-0@here", work=work)

    assert tokenizers.get(process.database(), made.tokenizer_id).status == "queued"
    assert list(worker.paths.runs.iterdir()) == []
