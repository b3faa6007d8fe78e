"""A database on another host, whose clock somebody sets."""

from __future__ import annotations

import time

import pytest

from tests.conftest import PostgresServer
from tests.database_clock import jump, let_jump
from tests.faults.victim import Victim, assert_one_at_a_time, runs_as

HOUR = 3_600.0
_SECONDS = 12.0  # longer than the lease, and than what workers get after a jump


@pytest.fixture
def further_settings(own_postgres: PostgresServer) -> dict[str, str]:
    let_jump(own_postgres)
    # Beats so rare that housekeeping looks before the next one.
    return {"DATABASE__URL": own_postgres.uri, "JOBS__LEASE_SEC": "10", "JOBS__BEAT_SEC": "5"}


@pytest.mark.slow
def test_a_run_goes_on_as_the_same_attempt_when_its_database_s_clock_jumps(
    victim: Victim, own_postgres: PostgresServer
) -> None:
    run_id = victim.start_run()
    run = victim.until(run_id, runs_as(1), seconds=60)

    for seconds in (HOUR, -HOUR, HOUR):
        jump(own_postgres, seconds)
        time.sleep(_SECONDS)
        run = victim.until(run_id, runs_as(1, beyond=run["step"] or 0), seconds=30)

    jump(own_postgres, -HOUR)
    victim.child().kill()
    victim.until(run_id, runs_as(2), seconds=30)
    victim.client.cancel_run(run_id)
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=15)
    assert_one_at_a_time(victim.log(run_id))
