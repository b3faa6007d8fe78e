"""A run that was killed, cancelled and resumed ends as one that nobody disturbed."""

from __future__ import annotations

import pytest

from tests.faults.victim import Victim, runs_as
from trainer_app.verify import check_curve

_ASIDE = (
    "run_id",
    "attempts",
    "created_at",
    "completed_at",
    "training_time_seconds",
    "files",  # README.md names the run, logs.jsonl its times
    "git_commit",  # of a checkout in which somebody may work meanwhile
)


@pytest.fixture(params=["sqlite", "postgresql"])
def further_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Which database the stack has."""
    if request.param == "sqlite":
        return {}
    return {"DATABASE__URL": request.getfixturevalue("bare_postgres_url")}


def outcome(victim: Victim, run_id: str) -> dict[str, object]:
    """What two equal runs have in common."""
    manifest = victim.client.run_manifest(run_id)
    points = victim.client.run_metrics(run_id)["points"]
    assert check_curve(points, manifest).ok
    kept = {name: value for name, value in manifest.items() if name not in _ASIDE}
    curve = [(point["step"], point["train_loss"], point["val_loss"]) for point in points]
    return kept | {"curve": curve}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_twice_and_cancelled_ends_in_the_same_bytes(victim: Victim) -> None:
    whole = victim.start_run(steps=300)
    victim.until(whole, lambda run: run["status"] == "completed", seconds=240)
    hurt = victim.start_run(steps=300)

    saved = 0
    for attempt in (1, 2):
        saved = victim.checkpoint(hurt, beyond=saved)
        victim.until(hurt, runs_as(attempt), seconds=60)
        victim.child().kill()
    saved = victim.checkpoint(hurt, beyond=saved)
    victim.until(hurt, runs_as(3), seconds=60)
    victim.client.cancel_run(hurt)
    victim.until(hurt, lambda run: run["status"] == "cancelled", seconds=5)
    victim.client.resume_run(hurt)
    run = victim.until(hurt, lambda run: run["status"] == "completed", seconds=240)

    assert run["attempt"] == 4
    log = victim.client.run_logs(hurt, tail=10_000)
    assert "attempt 2: worker lost at step" in log
    assert "attempt 4: cancelled, resumed from" in log
    assert outcome(victim, hurt) == outcome(victim, whole)
