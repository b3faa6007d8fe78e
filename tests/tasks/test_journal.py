"""The curve beside the checkpoints: what the database lacks comes from there."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from sqlalchemy import update

from tasks import journal as journals
from tasks import reporting
from tasks.held import Held
from tasks.journal import Journal
from tasks.reporting import RowReporter
from tests.reports import START, evaluation, step
from trainer_app.core.loss_chain import START as START_OF_CHAIN
from trainer_app.core.loss_chain import link
from trainer_app.core.observer import CheckpointReport, StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import StopRequested
from trainer_app.replies import MetricPoint
from trainer_app.settings import Settings
from trainer_app.store import lease, metrics, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, Progress
from trainer_app.store.tables import MetricRow
from trainer_app.verify import check_curve


@pytest.fixture
def claim(database: Database) -> Claim:
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    run_id = runs.create(database, spec, queue="trainer").run_id
    claimed = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claimed is not None
    return claimed


@pytest.fixture
def attempt(database: Database, claim: Claim, tmp_path: Path) -> Callable[[int], Journal]:
    """The journal of an attempt by its number; all write in the name of the one that holds."""

    def make(number: int) -> Journal:
        journal = Journal(tmp_path, database, replace(claim, attempt=number))
        journal._claim = claim  # the row knows one attempt
        return journal

    return make


def losses(database: Database, claim: Claim) -> dict[int, float | None]:
    return {point.step: point.train_loss for point in metrics.curve(database, claim.job_id)}


def test_a_resume_tells_what_the_attempt_before_had_not(
    database: Database, claim: Claim, attempt: Callable[[int], Journal]
) -> None:
    with closing(attempt(1)) as first:
        first.on_steps([step(n) for n in range(1, 2_001)])
        first.on_evaluation(evaluation(900, 2.5))
    [point] = reporting.points_of([step(700, loss=9.0)])  # the database has this one
    lease.progress(database, claim, lease.Progress(), [point])

    with closing(attempt(2)) as second:
        second.on_start(START)  # nothing to go on from
        assert len(losses(database, claim)) == 1
        second.on_start(replace(START, first_step=1_500))

    curve = {point.step: point for point in metrics.curve(database, claim.job_id)}
    assert list(curve) == list(range(1, 1_501))
    assert (curve[700].train_loss, curve[900].train_loss, curve[900].val_loss) == (9.0, 1.0, 2.5)
    assert curve[900].chain == f"{900:064x}"


def test_of_what_two_attempts_measured_the_newer_counts_also_the_tenth(
    database: Database, claim: Claim, attempt: Callable[[int], Journal]
) -> None:
    for number in (2, 9, 10):
        with closing(attempt(number)) as journal:
            journal.on_steps([step(number), step(1, loss=float(number))])
    with closing(attempt(11)) as journal:
        journal.on_start(replace(START, first_step=100))
    assert losses(database, claim) == {1: 10.0, 2: 1.0, 9: 1.0, 10: 1.0}


def test_a_line_that_was_cut_costs_its_point_alone(
    database: Database, claim: Claim, attempt: Callable[[int], Journal], tmp_path: Path
) -> None:
    lines = [json.dumps({"step": n, "train_loss": 1.0}) for n in (1, 2, 3)]
    (tmp_path / "curve-1.jsonl").write_text(f"{lines[0]}\n{lines[1][:9]}\n\xff\n{lines[2]}\n")
    with closing(attempt(2)) as journal:
        journal.on_start(replace(START, first_step=100))
    assert list(losses(database, claim)) == [1, 3]


def make_a_folder(path: Path) -> None:
    path.mkdir()
    (path / "a file").touch()


def make_a_link(path: Path) -> None:
    path.symlink_to("elsewhere")


STRANGE = [os.mkfifo, make_a_folder, make_a_link]


@pytest.mark.parametrize("make", STRANGE)
def test_what_stands_in_the_place_of_a_journal_makes_way(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    tmp_path: Path,
    make: Callable[[Path], None],
) -> None:
    make(tmp_path / "curve-1.jsonl")
    with closing(attempt(1)) as first:
        first.on_steps([step(1)])
    with closing(attempt(2)) as second:
        second.on_start(replace(START, first_step=1))

    assert sorted(losses(database, claim)) == [1]


@pytest.mark.parametrize("make", STRANGE)
def test_what_stands_in_the_place_of_an_earlier_journal_costs_its_points_alone(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    tmp_path: Path,
    make: Callable[[Path], None],
) -> None:
    make(tmp_path / "curve-1.jsonl")
    (tmp_path / "curve-x.jsonl").write_text("rubbish")
    (tmp_path / "curve-99999999999.jsonl").write_text("rubbish")
    with closing(attempt(2)) as second:
        second.on_steps([step(2)])
    with closing(attempt(3)) as third:
        third.on_start(replace(START, first_step=2))

    assert sorted(losses(database, claim)) == [2]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "1"}',
        '{"step": 1.5}',
        '{"step": true}',
        '{"step": 1, "epoch": null}',
        '{"step": 1, "train_loss": "low"}',
        '{"step": 1, "chain": 7}',
        '["step"]',
        "[" * 100_000,
        '{"step": -99999999999999999999}',
        '{"step": 99999999999}',
        "{}",
        "\x00\xff",
    ],
)
def test_a_line_that_somebody_has_edited_costs_its_point_alone(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    tmp_path: Path,
    line: str,
) -> None:
    with closing(attempt(1)) as first:
        first.on_steps([step(2)])
    with (tmp_path / "curve-1.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with closing(attempt(2)) as second:
        second.on_start(replace(START, first_step=3))

    assert sorted(losses(database, claim)) == [2]


def test_a_file_in_the_place_of_a_run_s_folder_makes_way(
    database: Database, claim: Claim, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.write_text("no folder")
    with closing(Journal(folder, database, claim)) as journal:
        journal.on_steps([step(1)])

    assert (folder / "curve-1.jsonl").stat().st_size > 0


def test_a_journal_that_the_disk_cannot_read_fails_the_attempt_that_may_read_it_later(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(attempt(1)) as first:
        first.on_steps([step(1)])

    def refuse(path: Path) -> object:
        raise OSError(errno.EMFILE, "too many open files", str(path))

    monkeypatch.setattr(journals, "open_regular", refuse)
    with closing(attempt(2)) as second, pytest.raises(OSError, match="too many"):
        second.on_start(replace(START, first_step=1))


def test_points_before_a_checkpoint_are_on_the_disk(
    attempt: Callable[[int], Journal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = attempt(1)
    journal.on_steps([step(1)])
    assert synced == []
    journal.on_checkpoint(CheckpointReport(path=tmp_path, step=1, seconds=0.1))
    assert synced == [str(tmp_path / "curve-1.jsonl"), str(tmp_path)]
    journal.close()
    assert len(synced) == 4


def refusing(monkeypatch: pytest.MonkeyPatch, takes: list[int | None]) -> None:
    """A disk that takes so many bytes of each write, in turn; None: an error."""
    real = os.write

    def write(file: int, data: bytes) -> int:
        if not takes:
            return real(file, data)
        count = takes.pop(0)
        if count is None:
            real(file, data[:20])  # what an error has left nobody knows
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:count])

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize(
    "takes",
    [[None], [None, None], [0], [10], [300], [10, None, 0, 1], [10**6, 5]],
    ids=str,
)
def test_what_the_disk_did_not_take_is_written_with_the_next_points(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
    takes: list[int | None],
) -> None:
    measured = [replace(step(n, loss=1.0 / n), chain=None) for n in range(1, 11)]
    chain = START_OF_CHAIN
    for n, one in enumerate(measured):
        chain = link(chain, one.step, one.train_loss)
        measured[n] = replace(one, chain=chain)
    refusing(monkeypatch, list(takes))
    with closing(attempt(1)) as journal:
        for first in range(0, 10, 2):
            journal.on_steps(measured[first : first + 2])
    with closing(attempt(2)) as journal:
        journal.on_start(replace(START, first_step=10))

    points = [
        MetricPoint(
            step=point.step,
            train_loss=point.train_loss,
            val_loss=point.val_loss,
            learning_rate=point.learning_rate,
            grad_norm=point.grad_norm,
            tokens_per_sec=point.tokens_per_sec,
            step_ms=point.step_ms,
            mfu=point.mfu,
            attempt=point.attempt or 0,
            chain=point.chain,
        )
        for point in metrics.curve(database, claim.job_id)
    ]
    verdict = check_curve(points, {"loss_chain": chain})
    assert verdict.ok, verdict.message
    assert verdict.steps == 10


def test_what_waits_for_the_disk_is_written_before_a_checkpoint_counts(
    attempt: Callable[[int], Journal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing(monkeypatch, [5])
    with closing(attempt(1)) as journal:
        journal.on_steps([step(1)])
        journal.on_checkpoint(CheckpointReport(path=tmp_path, step=1, seconds=0.1))
        cut, line = (tmp_path / "curve-1.jsonl").read_text().splitlines()
        assert (len(cut), json.loads(line)["step"]) == (5, 1)


def test_a_journal_that_is_closed_writes_into_no_file_that_has_its_number(
    attempt: Callable[[int], Journal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with closing(attempt(1)) as journal:
        number = journal._file.fileno()
        refusing(monkeypatch, [0, 0])
        journal.on_steps([step(1)])
    (other := tmp_path / "other").write_bytes(b"all of it")
    with other.open("r+b") as file:
        assert file.fileno() == number
        with pytest.raises(ValueError, match="closed"):
            journal.tell_missing(up_to=1)
    assert other.read_bytes() == b"all of it"


@pytest.fixture
def held(database: Database, claim: Claim, settings: Settings) -> Iterator[Held]:
    """The lease, of which nobody looks after."""
    with redis.Redis.from_url(settings.redis.url) as client:
        yield Held(database, client, settings.jobs, claim)


def test_more_points_than_memory_keeps_while_the_database_is_away_are_told_by_the_journal(
    database: Database,
    claim: Claim,
    held: Held,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_KEPT_POINTS", 100)
    monkeypatch.setattr(reporting, "_WRITTEN_POINTS", 30)
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    rows = RowReporter(away, claim, held)
    rows.on_start(START)
    with closing(attempt(1)) as journal:
        for number in range(1, 251):
            for observer in (journal, rows):
                observer.on_steps([step(number)])
        assert rows.has_dropped
        rows._database = database  # it is back
        rows.close()
        assert not rows.behind
        assert list(losses(database, claim)) == list(range(151, 251))
        journal.tell_missing(up_to=250)
    assert list(losses(database, claim)) == list(range(1, 251))


def test_what_a_curve_is_said_to_reach_is_there(
    database: Database, claim: Claim, held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reporting, "_WRITTEN_POINTS", 30)
    real = lease.progress
    reached: list[int] = []

    def tell_and_look(
        db: Database, claim: Claim, update: Progress, points: Sequence[lease.MetricPoint]
    ) -> None:
        real(db, claim, update, points)
        run = runs.get(db, claim.job_id)
        assert (run.loss_chain_step or 0) <= max(losses(db, claim), default=0)
        reached.append(run.loss_chain_step or 0)

    monkeypatch.setattr(lease, "progress", tell_and_look)
    rows = RowReporter(Database("postgresql://nobody@127.0.0.1:1/none"), claim, held)
    rows.on_start(replace(START, loss_chain=START_OF_CHAIN))
    rows.on_steps([step(number) for number in range(1, 101)])
    rows.on_checkpoint(
        CheckpointReport(path=tmp_path, step=100, seconds=0.1, loss_chain=f"{100:064x}")
    )
    rows._database = database  # it is back
    rows.close()

    assert reached[-1] == 100
    assert runs.get(database, claim.job_id).loss_chain == f"{100:064x}"


def test_before_its_first_checkpoint_a_run_has_kept_no_chain(
    database: Database, claim: Claim, held: Held
) -> None:
    rows = RowReporter(database, claim, held)
    rows.on_start(replace(START, loss_chain=START_OF_CHAIN))
    rows.on_steps([step(1)])
    rows.close()

    run = runs.get(database, claim.job_id)
    assert (run.step, run.loss_chain, run.loss_chain_step) == (1, None, None)


def test_of_a_run_that_was_begun_without_a_chain_none_is_kept(
    database: Database, claim: Claim, held: Held, tmp_path: Path
) -> None:
    rows = RowReporter(database, claim, held)
    rows.on_start(replace(START, first_step=7))
    rows.on_checkpoint(CheckpointReport(path=tmp_path, step=9, seconds=0.1))
    rows.close()

    run = runs.get(database, claim.job_id)
    assert (run.checkpoint_step, run.loss_chain, run.loss_chain_step) == (9, None, None)


def test_a_resume_does_not_wait_for_a_database_that_is_away(claim: Claim, tmp_path: Path) -> None:
    (tmp_path / "curve-0.jsonl").write_text(json.dumps({"step": 1, "train_loss": 1.0}))
    with closing(Journal(tmp_path, Database("postgresql://nobody@127.0.0.1:1/none"), claim)) as one:
        one.on_start(replace(START, first_step=100))
        assert one.is_behind


def test_points_that_cannot_be_written_are_told_by_the_journal(
    database: Database,
    claim: Claim,
    held: Held,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    with closing(attempt(1)) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(lease, "progress", fail)
            rows = RowReporter(database, claim, held)
            rows.on_start(START)
            for observer in (journal, rows):
                observer.on_steps([step(1)])
            rows.close()
        assert rows.has_dropped
        journal.tell_missing(up_to=1)
    assert list(losses(database, claim)) == [1]


def test_a_point_that_cannot_be_written_at_all_costs_no_other(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = lease.progress

    def refuse_the_third(
        db: Database, claim: Claim, update: Progress, points: Sequence[lease.MetricPoint]
    ) -> None:
        if any(point.step == 3 for point in points):
            raise ZeroDivisionError("nobody thought of this")
        real(db, claim, update, points)

    monkeypatch.setattr(lease, "progress", refuse_the_third)
    with closing(attempt(1)) as journal:
        for number in range(1, 6):
            journal.on_steps([step(number)])
        journal.tell_missing(up_to=5)
    assert list(losses(database, claim)) == [1, 2, 4, 5]


def test_an_interruption_is_no_point_that_cannot_be_written(
    claim: Claim, attempt: Callable[[int], Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise StopRequested(StopReason.CANCEL)

    monkeypatch.setattr(lease, "progress", interrupted)
    with closing(attempt(1)) as journal:
        journal.on_steps([step(1), step(2)])
        with pytest.raises(StopRequested):
            journal.tell_missing(up_to=2)


def test_what_a_version_after_this_one_measures_costs_no_point(
    database: Database, claim: Claim, attempt: Callable[[int], Journal], tmp_path: Path
) -> None:
    line = {"step": 1, "train_loss": 1.0, "measured_by_nobody_yet": 1.0}
    (tmp_path / "curve-1.jsonl").write_text(json.dumps(line))
    with closing(attempt(2)) as journal:
        journal.on_start(replace(START, first_step=100))
    assert losses(database, claim) == {1: 1.0}


def test_of_a_long_curve_only_what_the_database_may_lack_is_asked_for_point_by_point(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "_BLOCK", 10_000)
    measured = [step(n) for n in range(1, 1_001)]
    with closing(attempt(1)) as first:
        first.on_steps(measured[:500])
        first.on_evaluation(evaluation(500))
        first.on_steps(measured[500:])
    told = [one for one in measured if one.step not in (3, 700, 999)]
    lease.progress(database, claim, lease.Progress(), reporting.points_of(told))
    asked: list[int] = []
    lacking = metrics.lacking

    def ask(
        db: Database, run_id: str, points: Sequence[lease.MetricPoint]
    ) -> list[lease.MetricPoint]:
        asked.extend(point.step for point in points)
        return lacking(db, run_id, points)

    monkeypatch.setattr(metrics, "lacking", ask)
    with closing(attempt(2)) as second:
        second.on_start(replace(START, first_step=999))
    assert asked == [3, 500, 700, 999]  # and each evaluation
    assert list(losses(database, claim)) == list(range(1, 1_001))


@pytest.mark.parametrize("seed", range(6))
def test_no_point_is_missed_whatever_the_database_has_lost_and_says_of_itself(
    database: Database,
    claim: Claim,
    attempt: Callable[[int], Journal],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seed: int,
) -> None:
    monkeypatch.setattr(journals, "_BLOCK", 2_000)
    chance = random.Random(seed)
    ends = {1: (1, 60), 2: (41, 100), 4: (81, 140)}  # each from a checkpoint of the one before
    kept: list[lease.MetricPoint] = []
    for number, (first, last) in ends.items():
        with closing(attempt(number)) as journal:
            for n in range(first, last + 1):
                # each measures otherwise, as on another device
                one = replace(step(n, loss=number / n), chain=f"{number:02x}{n:062x}")
                points = reporting.points_of([one])
                journal.on_steps([one])
                if n % 20 == 0:
                    journal.on_evaluation(evaluation(n, 1 / n))
                    points.append(lease.MetricPoint(step=n, val_loss=1 / n))
                if chance.random() < 0.8:
                    some = points[: chance.randint(1, 2)]
                    kept += [replace(point, attempt=number) for point in some]
    lines = (tmp_path / "curve-2.jsonl").read_bytes().splitlines(keepends=True)
    assert b'"step": 65,' in lines[25]
    lines[25] = lines[25][: chance.randrange(200)] + b"\n"  # by a disk that was full
    lines.insert(40, b'{"step": ' + b"9" * 5_000 + b', "chain": "' + b"0" * 64 + b'"}\n')
    (tmp_path / "curve-2.jsonl").write_bytes(b"".join(lines))
    says = lease.Progress(loss_chain=f"{140:064x}", loss_chain_step=140)  # though some are gone
    lease.progress(database, claim, says, kept)
    with database.write() as connection:  # as whoever edits a row by hand
        emptied = chance.sample(range(1, 141), 5)
        connection.execute(
            update(MetricRow).where(MetricRow.step.in_(emptied)).values(train_loss=None)
        )

    with closing(attempt(5)) as journal:
        journal.on_start(replace(START, first_step=130))

    curve = {point.step: point for point in metrics.curve(database, claim.job_id)}
    for n in sorted({*range(1, 131)} - {65}):
        newest = max(number for number, (first, last) in ends.items() if first <= n <= last)
        assert (curve[n].train_loss, curve[n].chain) == (newest / n, f"{newest:02x}{n:062x}")
        assert curve[n].val_loss == (None if n % 20 else 1 / n)
