"""What the bot knows of runs, and how it says it."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from examples.discord_bot.board import Board, Card, State
from examples.discord_bot.events import (
    Event,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobStarted,
    MetricsCompleted,
    MetricsConfig,
    MetricsProgress,
)
from examples.discord_bot.render import escaped, render


def started(job_id: str = "run-1") -> JobStarted:
    return JobStarted(job_id=job_id, user_id=7, domain="trainer", queue="trainer")


def progress(percent: int, message: str = "step 3 of 10") -> JobProgress:
    return JobProgress(
        job_id="run-1",
        user_id=7,
        domain="trainer",
        queue="trainer",
        progress=percent,
        message=message,
    )


def failed(message: str, kind: str = "user", job_id: str = "run-1") -> JobFailed:
    return JobFailed(
        job_id=job_id,
        user_id=7,
        domain="trainer",
        queue="trainer",
        error_kind="user" if kind == "user" else "system",
        message=message,
    )


def config(family: str = "gpt2") -> MetricsConfig:
    return MetricsConfig(
        job_id="run-1",
        user_id=7,
        model_family=family,
        model_size="tiny",
        total_epochs=2,
        queue="trainer",
        cpu_cores=2,
        memory_mb=1_024,
        optimal_threads=2,
        batch_size=4,
        learning_rate=0.1,
    )


def point(step: int, loss: float, val_loss: float | None = None) -> MetricsProgress:
    return MetricsProgress(
        job_id="run-1",
        user_id=7,
        epoch=0,
        total_epochs=2,
        step=step,
        train_loss=loss,
        train_ppl=10.0,
        grad_norm=1.0,
        samples_per_sec=12.3456,
        loss=loss,
        perplexity=10.0,
        val_loss=val_loss,
        val_ppl=None if val_loss is None else 20.0,
    )


COMPLETED = JobCompleted(
    job_id="run-1",
    user_id=7,
    domain="trainer",
    queue="trainer",
    result_id="run-1",
    result_bytes=1_500_000,
    progress=100,
)
FINAL = MetricsCompleted(
    job_id="run-1", user_id=7, test_loss=1.25, test_ppl=3.49, artifact_path="/data/run-1"
)


def shown(*events: Event) -> list[str]:
    board = Board()
    for event in events:
        board.apply(event)
    [card] = board.cards.values()
    return render(card).splitlines()


def test_a_run_that_trains_has_a_bar_and_its_figures() -> None:
    assert shown(started(), config(), progress(50), point(3, 2.0), point(5, 1.5, 1.75)) == [
        "**gpt2 tiny** run\\-1 trains",
        "`██████████░░░░░░░░░░` 50 %, epoch 1 of 2, step 3 of 10",
        "loss 1.5, perplexity 10, 12.35 samples/s",
        "validation loss 1.75, perplexity 20 at step 5",
    ]


def test_a_run_that_has_finished_has_its_test_loss_and_its_artifact() -> None:
    assert shown(started(), progress(99), COMPLETED, FINAL) == [
        "**Run** run\\-1 has finished",
        "`████████████████████` 100 %",
        "test loss 1.25, perplexity 3.49",
        "artifact \\/data\\/run\\-1, 1.5 MB",
    ]


def test_an_artifact_may_be_known_before_its_size() -> None:
    assert shown(FINAL)[-1] == "artifact \\/data\\/run\\-1"


def test_a_run_that_has_failed_says_why() -> None:
    assert shown(started(), failed("the disk is full", "system")) == [
        "**Run** run\\-1 has failed",
        "`░░░░░░░░░░░░░░░░░░░░` 0 %",
        "because: the disk is full",
    ]


def test_a_cancelled_run_is_no_failed_one() -> None:
    assert shown(started(), failed("cancelled"))[0] == "**Run** run\\-1 was cancelled"
    assert shown(started(), failed("cancelled", "system"))[0].endswith("has failed")


def test_a_run_that_is_taken_up_again_trains() -> None:
    lines = shown(started(), point(5, 2.0), started())
    assert lines[0].endswith("trains")
    assert lines[2].startswith("loss 2, ")


def test_jobs_that_are_no_runs_are_not_shown() -> None:
    board = Board()
    for prefix in ("tok", "gen"):
        board.apply(started(f"{prefix}-1"))
    assert board.cards == {}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("@everyone", "\\@\u200beveryone"),
        ("<@123>", "\\<\\@\u200b123\\>"),
        ("**bold** _x_ `code`", "\\*\\*bold\\*\\* \\_x\\_ \\`code\\`"),
        ("two\nlines\r\n# title", "two lines \\# title"),
        ("[a](http://b)", "\\[a\\]\\(http\\:\\/\\/b\\)"),
        ("\\*", "\\\\\\*"),
        ("naïve 文", "naïve 文"),
    ],
)
def test_what_others_wrote_is_shown_as_it_is(text: str, safe: str) -> None:
    assert escaped(text, 100) == safe


def test_a_long_text_is_cut() -> None:
    assert escaped("x" * 101, 100) == "x" * 99 + "\\…"


def test_no_message_is_longer_than_discord_takes() -> None:
    nasty = "@" * 10_000
    figures = asdict(Card(job_id=nasty))
    figures |= {name: 1.2345678e300 for name in figures if name.endswith(("loss", "ppl", "sec"))}
    figures |= {"model": nasty, "doing": nasty, "artifact_path": nasty, "reason": nasty}
    figures |= {"perplexity": 1e300, "epoch": 10**9, "total_epochs": 10**9, "val_step": 10**18}
    figures |= {"artifact_bytes": 10**15, "percent": 100}
    for state in State:
        assert len(render(Card(**figures | {"state": state}))) <= 2_000


def test_a_board_is_read_back_as_it_was_written() -> None:
    board = Board(last_id="1-0")
    for event in (started(), config(), point(5, 1.5, 1.75), COMPLETED, FINAL):
        board.apply(event)

    assert Board.from_json(board.to_json()) == board
    assert Board.from_json(board.to_json()).cards["run-1"].state is State.FINISHED


def test_old_runs_make_room_and_running_ones_stay() -> None:
    board = Board()
    board.apply(started("run-long"))
    for number in range(300):
        board.apply(failed("why", job_id=f"run-{number}"))

    assert len(board.cards) == 200
    assert {"run-long", "run-299"} <= board.cards.keys()
    assert "run-0" not in board.cards
