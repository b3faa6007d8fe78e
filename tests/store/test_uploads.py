"""Finished models in the data bank, as the database knows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.errors import LeaseLost
from trainer_app.store import lease, requests, runs, uploads
from trainer_app.store.database import Database
from trainer_app.store.lease import Artifact, Claim, JobKind
from trainer_app.store.uploads import Archive

Elapse = Callable[[float], None]

ARCHIVE = Archive(file_id="file-1", sha256="a" * 64, bytes=123)


def complete(
    database: Database,
    claim: Claim,
    *,
    archive: Archive | None = None,
    error_code: str | None = None,
) -> None:
    lease.finish(
        database,
        claim,
        "completed",
        error_code=error_code,
        message="not sent" if error_code else "",
        artifact=Artifact(
            storage="data-bank" if archive else "local", sha256="b" * 64, archive=archive
        ),
    )


def test_a_run_that_was_sent_is_complete_with_its_archive(database: Database, claim: Claim) -> None:
    assert uploads.of_run(database, claim.job_id) is None

    complete(database, claim, archive=ARCHIVE)

    run = runs.get(database, claim.job_id)
    assert uploads.of_run(database, claim.job_id) == ARCHIVE
    assert (run.artifact_storage, run.artifact_file_id) == ("data-bank", "file-1")


def test_an_attempt_without_its_lease_records_nothing(database: Database, stale: Claim) -> None:
    with pytest.raises(LeaseLost):
        complete(database, stale, archive=ARCHIVE)

    assert uploads.of_run(database, stale.job_id) is None


def test_a_run_that_is_unknown_has_nothing_in_the_data_bank(database: Database) -> None:
    assert uploads.of_run(database, "run-none") is None


def test_a_run_whose_upload_failed_waits_until_it_is_sent_after_all(
    database: Database, claim: Claim
) -> None:
    assert uploads.waiting(database) == []
    complete(database, claim, error_code="ARTIFACT_UPLOAD_FAILED")
    assert uploads.waiting(database) == [claim.job_id]

    assert uploads.record_late(database, claim.job_id, ARCHIVE)

    assert uploads.waiting(database) == []
    run = runs.get(database, claim.job_id)
    assert (run.artifact_storage, run.artifact_file_id) == ("data-bank", "file-1")
    assert (run.error_code, run.message) == (None, "")


def test_of_two_that_send_a_model_late_the_first_is_recorded(
    database: Database, claim: Claim
) -> None:
    complete(database, claim, error_code="ARTIFACT_UPLOAD_FAILED")
    assert uploads.record_late(database, claim.job_id, ARCHIVE)

    second = Archive(file_id="file-2", sha256="a" * 64, bytes=123)
    assert not uploads.record_late(database, claim.job_id, second)

    assert uploads.of_run(database, claim.job_id) == ARCHIVE


def test_an_uploaded_model_tells_how_long_it_has_lain_there_and_been_unused(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    complete(database, claim, archive=ARCHIVE)
    (fresh,) = uploads.uploaded(database)
    spec = GenerateSpec(prompt_text="a").to_json()
    requests.create(database, JobKind.GENERATE, claim.job_id, spec, queue="q", user_id=0)
    elapse(100)
    (used,) = uploads.uploaded(database)

    assert (fresh.run_id, fresh.archive, fresh.used_seconds) == (claim.job_id, ARCHIVE, None)
    assert 0 <= fresh.uploaded_seconds < 60
    assert used.used_seconds is not None
    assert 100 <= used.used_seconds < 160


def test_a_model_that_is_only_here_is_not_among_the_uploaded(
    database: Database, claim: Claim
) -> None:
    complete(database, claim)

    assert uploads.uploaded(database) == []
    assert uploads.waiting(database) == []
