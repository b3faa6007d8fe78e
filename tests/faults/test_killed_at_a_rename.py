"""A process that is killed exactly at the renames that make a checkpoint or a model appear."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.disk_shim import compiled
from tests.faults.outcomes import has_completed, outcome
from tests.faults.victim import Victim, assert_one_at_a_time

_STEPS = 12
# As tests/failing_disk.c takes them. The rename of a checkpoint comes before the database, the log
# and the curve hear of it.
_ORDERS = (
    "before 3 checkpoints/step-",
    "after 3 checkpoints/step-",
    "before 1 models/run-",
    "after 1 models/run-",
)


@pytest.fixture
def order(tmp_path: Path) -> Path:
    """The file in which a process of the stack finds the order to die."""
    return tmp_path / "order"


@pytest.fixture
def further_settings(
    either_database: dict[str, str], tmp_path: Path, order: Path
) -> dict[str, str]:
    """A checkpoint at each step, and the library that ends a process at a rename."""
    return either_database | {
        "LD_PRELOAD": str(compiled(tmp_path)),
        "DISK_KILLS": str(order),
        "JOBS__CHECKPOINT_SEC": "0",
    }


def last_checkpoint_told(victim: Victim, run_id: str, attempt: int) -> int:
    """The step of the last checkpoint that an attempt has told of."""
    told = [
        int(str(entry["step"]))
        for entry in victim.log(run_id)
        if (entry["attempt"], entry["event"]) == (attempt, "checkpoint")
    ]
    return told[-1]


@pytest.mark.timeout(300)
def test_a_run_that_is_killed_at_the_rename_of_a_checkpoint_or_model_ends_in_the_same_bytes(
    victim: Victim, order: Path
) -> None:
    whole = victim.start_run(steps=_STEPS)
    victim.until(whole, has_completed, seconds=60)
    undisturbed = outcome(victim, whole)

    for what in _ORDERS:
        order.write_text(what)
        run_id = victim.start_run(steps=_STEPS)
        victim.until(run_id, has_completed, seconds=120)

        struck = order.with_name("order.obeyed").read_text()
        assert run_id in struck
        assert outcome(victim, run_id) == undisturbed
        assert_one_at_a_time(victim.log(run_id))
        attempts = victim.client.get_run(run_id)["attempt"]
        if what == "after 1 models/run-":  # housekeeping finds it
            assert attempts == 1
            assert (
                "attempt 1: worker lost after it had published the model; completed"
                in victim.events(run_id)
            )
            continue
        assert attempts == 2
        told = last_checkpoint_told(victim, run_id, attempt=1)
        [goes_on] = [said for said in victim.events(run_id) if said.startswith("attempt 2: ")]
        match what.split():
            case ["before", _, "checkpoints/step-"]:  # the one before is used
                assert goes_on.endswith(f", resumed from {told}")
            case ["after", _, "checkpoints/step-"]:  # it is whole, though nobody was told of it
                step = int(Path(struck).name.split("-")[1])
                assert step > told
                assert goes_on.endswith(f", resumed from {step}")
            case _:
                assert goes_on.endswith(f", resumed from {told}")
