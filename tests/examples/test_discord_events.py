"""The decoder of events takes the contract's and nothing else."""

from __future__ import annotations

import json

import pytest

from examples.discord_bot.events import (
    TYPES,
    JobProgress,
    MalformedEvent,
    MetricsProgress,
    decode,
)

COMMON: dict[str, object] = {"job_id": "run-1", "user_id": 7}
LIFECYCLE: dict[str, object] = {**COMMON, "domain": "trainer", "queue": "trainer"}
POINT: dict[str, object] = {
    **COMMON,
    "epoch": 0,
    "total_epochs": 1,
    "step": 3,
    "train_loss": 2.0,
    "train_ppl": 7.4,
    "grad_norm": 0.5,
    "samples_per_sec": 10.0,
    "loss": 2.0,
    "perplexity": 7.4,
}
EVENTS: dict[str, dict[str, object]] = {
    "trainer.job.started.v1": LIFECYCLE,
    "trainer.job.progress.v1": {**LIFECYCLE, "progress": 99, "message": "step 3"},
    "trainer.job.completed.v1": {
        **LIFECYCLE,
        "result_id": "run-1",
        "result_bytes": 10,
        "progress": 100,
    },
    "trainer.job.failed.v1": {**LIFECYCLE, "error_kind": "user", "message": "cancelled"},
    "trainer.metrics.config.v1": {
        **COMMON,
        "model_family": "gpt2",
        "model_size": "tiny",
        "total_epochs": 1,
        "queue": "trainer",
        "cpu_cores": 2,
        "memory_mb": 1_024,
        "optimal_threads": 2,
        "batch_size": 4,
        "learning_rate": 0.0005,
    },
    "trainer.metrics.progress.v1": POINT,
    "trainer.metrics.completed.v1": {
        **COMMON,
        "test_loss": 1.0,
        "test_ppl": 2.7,
        "artifact_path": "/a",
    },
}
PROGRESS = "trainer.job.progress.v1"


def encoded(kind: str, **changes: object) -> str:
    return json.dumps({"type": kind, **EVENTS[kind], **changes})


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_decoded(kind: str) -> None:
    event = decode(encoded(kind, a_field_of_tomorrow=1))

    assert type(event) is TYPES[kind]
    assert event is not None
    assert {name: getattr(event, name) for name in EVENTS[kind]} == EVENTS[kind]


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k in EVENTS for name in EVENTS[k]])
def test_no_field_may_be_missing_or_null(kind: str, name: str) -> None:
    values = {"type": kind, **EVENTS[kind]}
    with pytest.raises(MalformedEvent, match=name):
        decode(json.dumps(values | {name: None}))
    del values[name]
    with pytest.raises(MalformedEvent, match=name):
        decode(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_loss", 2),
        ("train_loss", float("nan")),
        ("train_loss", float("inf")),
        ("train_loss", "2.0"),
        ("val_loss", None),
        ("val_loss", 1),
        ("step", 3.0),
        ("step", True),
        ("job_id", 1),
        ("user_id", "7"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(MalformedEvent, match=name):
        decode(encoded("trainer.metrics.progress.v1", **{name: value}))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (PROGRESS, "progress", 100),
        (PROGRESS, "progress", -1),
        (PROGRESS, "domain", "other"),
        ("trainer.job.completed.v1", "progress", 99),
        ("trainer.job.failed.v1", "error_kind", "nobody"),
    ],
)
def test_a_value_that_the_contract_does_not_have_is_refused(
    kind: str, name: str, value: object
) -> None:
    with pytest.raises(MalformedEvent, match=name):
        decode(encoded(kind, **{name: value}))


def test_an_evaluation_may_come_with_a_point() -> None:
    event = decode(encoded("trainer.metrics.progress.v1", val_loss=1.5, val_ppl=4.5))
    assert isinstance(event, MetricsProgress)
    assert (event.val_loss, event.val_ppl) == (1.5, 4.5)
    event = decode(encoded("trainer.metrics.progress.v1"))
    assert isinstance(event, MetricsProgress)
    assert event.val_loss is None


def test_the_first_and_the_last_per_cent_are_taken() -> None:
    for progress in (0, 99):
        event = decode(encoded(PROGRESS, progress=progress))
        assert isinstance(event, JobProgress)


@pytest.mark.parametrize("kind", ["trainer.job.started.v2", "other.job.started.v1", ""])
def test_an_unknown_type_is_no_event(kind: str) -> None:
    assert decode(json.dumps({"type": kind})) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "{}", '{"type": 1}', b"\xff\xfe\x00"])
def test_what_is_no_event_at_all_is_refused(text: str | bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode(text)
