"""A disk that is taken away from under a stack, and comes back."""

from __future__ import annotations

from tests.faults.victim import Victim


def test_a_model_is_put_on_the_disk_that_was_taken_away_while_its_run_trained(
    victim: Victim,
) -> None:
    run_id = victim.start_run(steps=200)
    victim.checkpoint(run_id)
    disk = victim.stack.data_root / "artifacts"
    away = disk.with_name("away")
    disk.rename(away)
    disk.mkdir()  # what lies beneath
    victim.until(run_id, lambda run: "waits for it" in run["message"], seconds=90)
    victim.child().kill()  # neither does the process that takes its place put it there
    victim.until(
        run_id,
        lambda run: run["attempt"] == 2 and "waits for it" in run["message"],
        seconds=90,
    )
    disk.rmdir()
    away.rename(disk)

    run = victim.until(run_id, lambda run: run["status"] == "completed", seconds=90)
    assert run["attempt"] == 2
    assert victim.client.run_artifact(run_id)["files"]
