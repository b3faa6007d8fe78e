"""Weights that the data bank has: deleted here when nobody uses them, and only if it has them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cleanup.conftest import DAY
from tests.damaged import damage
from tests.databank_server import Behaviour, DataBankServer, body, status
from trainer_app import artifacts
from trainer_app.cleanup.models import clean_models
from trainer_app.cleanup.report import Report
from trainer_app.core.stopping import never
from trainer_app.databank.client import DataBank
from trainer_app.file_lock import locked
from trainer_app.restore import is_whole, lock_of
from trainer_app.store.lease import Artifact

if TYPE_CHECKING:
    from tests.cleanup.conftest import World


@pytest.fixture
def run_id(world: World, server: DataBankServer) -> str:
    """A run whose model was uploaded two days ago."""
    run_id = world.model(server)
    world.elapse(2 * DAY)
    return run_id


def clean(world: World, bank: DataBank, *, dry_run: bool = False, verify: bool = True) -> Report:
    rules = replace(world.settings.cleanup, verify_upload=verify)
    changed = replace(world.settings, cleanup=rules)
    return clean_models(world.database, changed, bank, dry_run=dry_run)


def weights(world: World, run_id: str) -> Path:
    return artifacts.model_directory(world.settings, run_id) / "model.safetensors"


def test_weights_go_and_what_describes_them_stays(
    world: World, bank: DataBank, run_id: str
) -> None:
    folder = artifacts.model_directory(world.settings, run_id)
    before = artifacts.pointer(folder)
    assert is_whole(folder)

    (item,) = clean(world, bank).removed

    assert (item.name, item.bytes) == (run_id, 1_000)
    assert not weights(world, run_id).exists()
    assert artifacts.pointer(folder) == before
    assert not is_whole(folder)
    assert clean(world, bank).removed == ()


def test_a_dry_run_deletes_nothing(world: World, bank: DataBank, run_id: str) -> None:
    report = clean(world, bank, dry_run=True)

    assert [item.name for item in report.removed] == [run_id]
    assert weights(world, run_id).exists()


def test_within_the_grace_period_nothing_is_touched(
    world: World, bank: DataBank, server: DataBankServer
) -> None:
    run_id = world.model(server)
    world.elapse(0.9 * DAY)

    report = clean(world, bank)

    assert (report.removed, report.kept) == ((), ())
    assert weights(world, run_id).exists()


def test_a_model_that_was_asked_lately_stays(world: World, bank: DataBank, run_id: str) -> None:
    world.end(world.ask(run_id))

    assert clean(world, bank).removed == ()
    assert weights(world, run_id).exists()


def test_a_model_that_was_loaded_lately_stays_when_the_request_is_forgotten(
    world: World, bank: DataBank, run_id: str
) -> None:
    os.utime(artifacts.model_directory(world.settings, run_id))

    assert clean(world, bank).removed == ()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("use", ["request", "fine-tuning"])
def test_a_model_that_an_unfinished_job_reads_stays(
    world: World, bank: DataBank, run_id: str, use: str, dry_run: bool
) -> None:
    job_id = world.ask(run_id) if use == "request" else world.run(pretrained_run_id=run_id)
    world.elapse(2 * DAY)

    report = clean(world, bank, dry_run=dry_run)
    assert report.removed == ()
    assert [item.reason for item in report.kept] == ["a queued or running job reads it"]
    world.end(job_id)
    world.elapse(2 * DAY)

    assert [item.name for item in clean(world, bank).removed] == [run_id]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(404), "no such file"),
        (status(500), "500"),
        (body(b"", ETag='"' + "0" * 64 + '"'), "other bytes"),
        (body(b""), "SHA-256"),
    ],
)
def test_weights_that_the_data_bank_does_not_confirm_stay(
    world: World, bank: DataBank, server: DataBankServer, run_id: str, answer: Behaviour, why: str
) -> None:
    server.always("HEAD", answer)

    report = clean(world, bank)

    assert report.removed == ()
    assert why in report.kept[0].reason
    assert weights(world, run_id).exists()


def test_who_does_not_want_to_verify_does_not_ask(
    world: World, bank: DataBank, server: DataBankServer, run_id: str
) -> None:
    assert [item.name for item in clean(world, bank, verify=False).removed] == [run_id]
    assert server.requests == []


def test_a_model_that_is_only_here_is_never_touched(
    world: World, bank: DataBank, server: DataBankServer
) -> None:
    run_id = world.run()
    world.end(run_id, artifact=Artifact(storage="local", sha256="0" * 64))
    world.elapse(1_000 * DAY)

    report = clean(world, bank)

    assert (report.removed, report.kept, server.requests) == ((), (), [])


def test_a_model_that_is_being_fetched_back_stays(
    world: World, bank: DataBank, run_id: str
) -> None:
    lock = lock_of(artifacts.model_directory(world.settings, run_id))
    with locked(lock, should_stop=never):
        report = clean(world, bank)

    assert [item.reason for item in report.kept] == ["it is being fetched"]
    assert weights(world, run_id).exists()


def test_weights_that_are_a_link_are_not_followed(
    world: World, bank: DataBank, run_id: str, tmp_path: Path
) -> None:
    outside = tmp_path / "weights"
    path = weights(world, run_id)
    path.rename(outside)
    path.symlink_to(outside)
    world.elapse(2 * DAY)

    report = clean(world, bank)

    assert "links are not followed" in report.kept[0].reason
    assert outside.exists()
    assert path.is_symlink()


def test_a_run_whose_row_is_damaged_keeps_no_model_from_being_cleaned_up(
    world: World, bank: DataBank, run_id: str
) -> None:
    damage(world.database, world.run(pretrained_run_id=run_id), spec="{")

    assert [item.name for item in clean(world, bank).removed] == [run_id]
