"""A model that fits into no worker is refused where it is posted, with the two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

if TYPE_CHECKING:
    from tests.api.conftest import World

GB = 10**9
HUGE = {"model_size": "xl", "max_seq_len": 1_024}  # 1.56 G parameters: 25 GB and activations


def post(client: FlaskClient, body: dict[str, object]) -> str | None:
    """Why it was refused; None: it was not."""
    answer = client.post("/runs/train", json=body)
    if answer.status_code == 202:
        return None
    assert answer.status_code == 422
    (detail,) = answer.get_json()["details"]
    assert detail["field"] == "model_size"
    message: str = detail["message"]
    return message


def test_it_is_refused_with_what_it_takes_and_what_there_is(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=16 * GB)
    reason = post(client, body | HUGE)
    assert reason is not None
    assert "at least 41.3 GB" in reason
    assert "16.0 GB (cpu)" in reason
    assert client.get("/runs").get_json()["data"] == []


@pytest.mark.parametrize(
    "change",
    [{"model_size": "tiny"}, HUGE | {"max_seq_len": 8, "batch_size": 1, "optimizer": "sgd"}],
)
def test_what_may_fit_is_taken(
    client: FlaskClient, world: World, body: dict[str, object], change: dict[str, object]
) -> None:
    world.worker(cpu=20 * GB)
    assert post(client, body | change) is None


def test_a_batch_may_be_what_does_not_fit(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=16 * GB)
    assert post(client, body | {"batch_size": 4_096, "max_seq_len": 4_096}) is not None


def test_the_largest_worker_counts(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=8 * GB, name="small")
    world.worker(cpu=16 * GB, name="middle")
    assert "16.0 GB" in str(post(client, body | HUGE))
    world.worker(cpu=64 * GB, name="large")
    assert post(client, body | HUGE) is None


def test_a_run_that_is_pinned_must_fit_there(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker("trainer", "trainer.a", cpu=8 * GB, name="a")
    world.worker("trainer", "trainer.b", cpu=64 * GB, name="b")
    assert "8.0 GB" in str(post(client, body | HUGE | {"queue": "trainer.a"}))
    assert post(client, body | HUGE | {"queue": "trainer.b"}) is None


def test_a_gpus_memory_counts_where_the_run_would_use_it(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=64 * GB, cuda=24 * GB)
    assert "24.0 GB (cuda)" in str(post(client, body | HUGE))
    assert post(client, body | HUGE | {"device": "cpu"}) is None


def test_half_precision_takes_less_of_a_gpu(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=64 * GB, cuda=36 * GB)
    assert post(client, body | HUGE) is None  # auto is fp16 there
    assert "41.3 GB" in str(post(client, body | HUGE | {"precision": "fp32"}))


def test_a_device_that_no_worker_has_is_no_reason(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    world.worker(cpu=8 * GB)
    assert post(client, body | HUGE | {"device": "cuda"}) is None


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_refused_where_no_worker_has_a_gpu(
    client: FlaskClient, world: World, body: dict[str, object], precision: str
) -> None:
    asked = body | {"precision": precision}
    world.worker(cpu=8 * GB, name="one")
    response = client.post("/runs/train", json=asked)
    assert response.status_code == 422
    (detail,) = response.get_json()["details"]
    assert detail["field"] == "precision"
    assert f"{precision} needs CUDA" in detail["message"]
    assert post(client, asked | {"device": "cuda"}) is None  # such a worker may come
    world.worker("trainer", "trainer.gpu", cpu=8 * GB, cuda=8 * GB, name="two")
    assert post(client, asked) is None


def test_half_precision_is_taken_where_the_devices_are_not_known(
    client: FlaskClient, world: World, body: dict[str, object]
) -> None:
    asked = body | {"precision": "bf16"}
    assert post(client, asked) is None
    world.worker(name="silent")
    assert post(client, asked) is None


def test_without_a_live_worker_nothing_is_refused(
    client: FlaskClient, body: dict[str, object]
) -> None:
    assert post(client, body | HUGE) is None
