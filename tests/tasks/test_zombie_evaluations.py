"""An evaluation that slept past its lease changes nothing of a later one when it wakes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tasks import evaluation, housekeeping, process, staging
from tasks.perform import perform
from tasks.shells import work_of
from trainer_app import artifacts
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs
from trainer_app.store.lease import JobKind

TEXT = "\n".join(f"line {number} of a text to learn from" for number in range(200)).encode()


@pytest.fixture
def run_id(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that this worker has trained for a moment."""
    monkeypatch.setenv("APP__THREADS", "1")
    process.settings.cache_clear()
    worker.paths.corpus.mkdir(parents=True)
    (worker.paths.corpus / "a.txt").write_bytes(TEXT)
    spec = TrainSpec(
        model_family="char_lstm",
        model_size="tiny",
        max_seq_len=16,
        batch_size=8,
        max_steps=1,
        corpus_path="a.txt",
        corpus_sha256=sha256(TEXT).hexdigest(),
        holdout_fraction=0.1,
        device="cpu",
    )
    run_id = runs.create(process.database(), spec, queue="trainer").run_id
    perform(run_id, hostname="train@here", work=work_of(JobKind.TRAIN))
    return run_id


def queue(run_id: str) -> str:
    return requests.create(
        process.database(),
        JobKind.EVALUATE,
        run_id,
        EvaluateSpec().to_json(),
        queue="q",
        user_id=0,
        topic="validation",
    ).request_id


def evaluate(request_id: str) -> None:
    perform(request_id, hostname="inference@here", work=evaluation.work)


def kept(run_id: str) -> object:
    found = artifacts.read_evaluation(process.settings(), run_id, "validation")
    return None if found is None else found["request_id"]


def before_the_rename(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[], object]) -> None:
    """Fall asleep between the last look at the lease and the rename."""
    replace, naps = Path.replace, [sleep]

    def sleep_and_replace(path: Path, target: Path) -> Path:
        if naps and target.name == "validation.json" and path.name == target.name:
            naps.pop()()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", sleep_and_replace)


def test_the_file_of_a_later_evaluation_stays_as_it_is(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = queue(run_id)
    later: list[str] = []

    def sleep() -> None:
        lease.request_cancel(process.database(), slept)
        lease.expire(process.database(), slept, owner_prefix="inference@here")
        housekeeping.reap()
        later.append(queue(run_id))
        evaluate(later[0])
        assert kept(run_id) == later[0]

    before_the_rename(monkeypatch, sleep)
    evaluate(slept)

    assert [kept(run_id)] == later
    file = artifacts.evaluation_file(process.settings(), run_id, "validation")
    assert list(file.parent.iterdir()) == [file]
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_what_an_earlier_attempt_has_prepared_goes_with_the_next_one(run_id: str) -> None:
    settings = process.settings()
    request_id = queue(run_id)
    claim = lease.claim(process.database(), request_id, "gone:1", lease_seconds=60)
    assert claim is not None
    left = staging.of_evaluation(settings, request_id, claim.attempt)
    left.mkdir(parents=True)
    lease.hand_back(process.database(), claim, message="")

    evaluate(request_id)

    assert kept(run_id) == request_id
    assert not left.exists()
