"""A run that was killed in every way ends as one that nobody disturbed, in each family."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from backends.registry import MODEL_FAMILIES, OWN_TOKENIZERS
from tests.faults.outcomes import has_completed, outcome
from tests.faults.victim import RunTest, Victim, assert_one_at_a_time, runs_as

STEPS = 1_500
# Well before the end: of each step a test hears most of a second late, when many more are done.
STRUCK_BEFORE = 150
KILLS = ("child", "worker", "stack", "machine")
CAUSES = {
    "child": ("worker lost at step",),
    # Its child hands the run back if it comes to it before it is killed, too.
    "worker": ("worker lost at step", "its worker shut down"),
    "stack": ("its worker shut down",),
    "machine": ("worker lost at step",),
    "user": ("cancelled",),
}
_CASES = [(family, "sqlite") for family in MODEL_FAMILIES]
_CASES += [(family, "postgresql") for family in ("gpt2", "char_lstm")]  # a transformer, and not


@pytest.fixture(params=_CASES, ids=["-".join(case) for case in _CASES])
def family_and_settings(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """A family, and which database the stack has."""
    family, database = request.param
    if database == "sqlite":
        return family, {}
    return family, {"DATABASE__URL": request.getfixturevalue("bare_postgres_url")}


@pytest.fixture
def family(family_and_settings: tuple[str, dict[str, str]]) -> str:
    return family_and_settings[0]


@pytest.fixture
def further_settings(family_and_settings: tuple[str, dict[str, str]]) -> dict[str, str]:
    return family_and_settings[1]


def strike(victim: Victim, kind: str, run_id: str, after: ExitStack) -> Victim:
    """Do it to the run; the victim as it is then, started again where all of it has ended."""
    match kind:
        case "child":
            victim.child().kill()
        case "worker":
            victim.worker().kill()
        case "user":
            victim.client.cancel_run(run_id)
            victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=10)
            victim.client.resume_run(run_id)
        case "stack":
            assert victim.stack.stop() == 0
            return after.enter_context(victim.again())
        case _:
            victim.stack.kill()
            return after.enter_context(victim.again())
    return victim


def trains_as(attempt: int, beyond: int) -> RunTest:
    """Whether an attempt has said why it goes on, where it does, and trains beyond a step."""
    told = f"attempt {attempt}: " if attempt > 1 else ""
    running = runs_as(attempt, beyond)
    return lambda run: running(run) and told in run["message"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_in_every_way_at_any_step_ends_in_the_same_bytes(
    victim: Victim, family: str
) -> None:
    rng = random.Random(family)
    fields: dict[str, object] = {"model_family": family, "eval_steps": 130}
    if family not in OWN_TOKENIZERS:
        fields["tokenizer_id"] = victim.tokenizer()
    whole = victim.start_run(steps=STEPS, **fields)
    victim.until(whole, has_completed, seconds=240)
    undisturbed = outcome(victim, whole)

    hurt = victim.start_run(steps=STEPS, **fields)
    kills = rng.sample(KILLS, len(KILLS))
    strikes = [*kills[:2], "user", *kills[2:]]
    steps = sorted(rng.sample(range(20, STRUCK_BEFORE), len(strikes)))
    with ExitStack() as stacks:
        for attempt, (kind, step) in enumerate(zip(strikes, steps, strict=True), 1):
            victim.until(hurt, trains_as(attempt, beyond=step), seconds=120)
            victim = strike(victim, kind, hurt, stacks)
        victim.until(hurt, has_completed, seconds=240)

        assert outcome(victim, hurt) == undisturbed
        log = victim.log(hurt)
    assert_one_at_a_time(log)
    said = [str(entry["event"]) for entry in log]
    for attempt, kind in enumerate(strikes, 2):
        starts = tuple(f"attempt {attempt}: {cause}" for cause in CAUSES[kind])
        assert any(event.startswith(starts) and ", resumed from" in event for event in said), starts
