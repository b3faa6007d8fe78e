"""What the chaos benchmark takes for news that are untrue, out of order or lacking."""

from __future__ import annotations

import pytest

from benchmarks.chaos_news import (
    COMPLETED,
    CONFIG,
    FAILED,
    FIGURES,
    METRICS,
    PROGRESS,
    STARTED,
    Told,
    missing,
    untrue,
)

LOSSES = ("train_loss", "train_ppl", "grad_norm", "samples_per_sec", "loss", "perplexity")
FIELDS: dict[str, dict[str, object]] = {
    PROGRESS: {"progress": 50},
    FAILED: {"error_kind": "user", "message": "cancelled"},
    CONFIG: {"learning_rate": 0.1},
    METRICS: dict.fromkeys(LOSSES, 1.0),
    FIGURES: {"test_loss": 1.0, "test_ppl": 2.7},
}
COMMON: dict[str, object] = {"user_id": 0, "domain": "trainer", "queue": "trainer"}
WHOLE = [STARTED, CONFIG, PROGRESS, METRICS, COMPLETED, FIGURES]


def told(*types: str) -> list[Told]:
    """One event a second, from the first."""
    return [
        Told(at=1.0 + number, event={"type": kind, **COMMON, **FIELDS.get(kind, {})})
        for number, kind in enumerate(types)
    ]


def complaints(one: list[Told], status: str, *, ends: int = 0, since: float = 0.0) -> list[str]:
    return [
        *untrue(one, status=status, ends=ends),
        *missing(one, status=status, since=since, ended_at=100.0),
    ]


@pytest.mark.parametrize(
    ("types", "status", "ends"),
    [
        (WHOLE, "completed", 0),
        ([STARTED, CONFIG, PROGRESS, STARTED, *WHOLE], "completed", 0),  # twice handed back
        ([STARTED, COMPLETED, FIGURES], "completed", 0),  # it was published already
        ([STARTED, CONFIG, FAILED, *WHOLE], "completed", 1),
        ([FAILED], "cancelled", 1),
        ([STARTED, CONFIG, METRICS, FAILED, FAILED], "cancelled", 2),
    ],
)
def test_what_the_contract_allows_is_right(types: list[str], status: str, ends: int) -> None:
    assert complaints(told(*types), status, ends=ends) == []


@pytest.mark.parametrize(
    ("types", "status", "ends"),
    [
        ([*WHOLE, PROGRESS], "completed", 0),
        ([*WHOLE, COMPLETED], "completed", 0),
        (WHOLE, "cancelled", 1),
        ([STARTED, FAILED, FAILED], "cancelled", 1),
        ([STARTED, FIGURES, COMPLETED], "completed", 0),
    ],
)
def test_what_is_untrue_is_so_whatever_was_lost(types: list[str], status: str, ends: int) -> None:
    assert [*untrue(told(*types), status=status, ends=ends)]


@pytest.mark.parametrize(
    ("types", "status"),
    [
        ([], "completed"),
        (WHOLE[:-1], "completed"),
        (WHOLE[1:], "completed"),
        ([STARTED, PROGRESS, COMPLETED, FIGURES], "completed"),
        ([STARTED, CONFIG, COMPLETED, METRICS, FIGURES], "completed"),
        ([STARTED, CONFIG], "cancelled"),
    ],
)
def test_what_lacks_while_all_is_left_alone_is_missed(types: list[str], status: str) -> None:
    assert [*missing(told(*types), status=status, since=0.0, ended_at=9.0)]


def test_what_was_told_before_may_have_been_lost() -> None:
    assert complaints(told(PROGRESS, COMPLETED, FIGURES), "completed", since=0.5) == []
    assert complaints(told(STARTED, METRICS), "completed", since=200.0) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (STARTED, {"domain": "other"}),
        (STARTED, {"user_id": 1.0}),
        (PROGRESS, {"progress": 100}),
        (PROGRESS, {"queue": ""}),
        (METRICS, {"train_loss": 1}),
        (FIGURES, {"test_loss": None}),
        (FAILED, {"error_kind": "system", "message": "a bug"}),
        ("trainer.job.danced.v1", {}),
    ],
)
def test_an_event_of_another_form_than_the_contracts_is_told(
    kind: str, change: dict[str, object]
) -> None:
    event = {"type": kind, **COMMON, **FIELDS.get(kind, {}), **change}

    (first, *_) = untrue([Told(at=1.0, event=event)], status="completed", ends=1)

    assert kind in first
