"""A disk that is taken away from under a stack, and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.victim import Victim
from trainer_app.replies import Run


def take_away(disk: Path) -> Callable[[], None]:
    """Leave what lies beneath; returns how to bring the disk back, where that is still empty."""
    away = disk.with_name("away")
    disk.rename(away)
    disk.mkdir()

    def bring_back() -> None:
        disk.rmdir()
        away.rename(disk)

    return bring_back


def is_put_off(run: Run) -> bool:
    return run["status"] == "queued" and "waits for it" in run["message"]


def test_a_model_is_put_on_the_disk_that_was_taken_away_while_its_run_trained(
    victim: Victim,
) -> None:
    run_id = victim.start_run(steps=200)
    victim.checkpoint(run_id)
    bring_back = take_away(victim.stack.data_root / "artifacts")
    victim.until(run_id, lambda run: "waits for it" in run["message"], seconds=90)
    victim.child().kill()  # neither does the process that takes its place put it there
    victim.until(run_id, is_put_off, seconds=90)
    bring_back()

    run = victim.until(run_id, lambda run: run["status"] == "completed", seconds=90)
    assert run["attempt"] == 2
    assert victim.client.run_artifact(run_id)["files"]


def test_a_worker_that_is_started_again_without_the_disk_puts_no_model_beneath_it(
    victim: Victim,
) -> None:
    run_id = victim.start_run(steps=200)
    victim.checkpoint(run_id)
    bring_back = take_away(victim.stack.data_root / "artifacts")
    fields = {"method": "char", "vocab_size": 300, "corpus_file_id": victim.corpus_file_id}
    tokenizer_id = victim.client.train_tokenizer(fields)["tokenizer_id"]
    victim.worker().kill()  # the supervisor starts another
    victim.until(run_id, is_put_off, seconds=90)
    assert victim.client.get_tokenizer(tokenizer_id)["status"] == "queued"
    bring_back()

    run = victim.until(run_id, lambda run: run["status"] == "completed", seconds=90)
    assert run["attempt"] == 2
    assert victim.client.run_artifact(run_id)["files"]
    tokenizer = victim.client.wait_for_tokenizer(tokenizer_id, timeout=60)
    assert tokenizer["status"] == "completed"
