"""Reading and following the curves of runs."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.store import lease
from trainer_app.store.lease import Claim, MetricPoint, Progress
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

pytestmark = ON_BOTH_DATABASES


def record(world: World, claim: Claim, *points: MetricPoint) -> None:
    lease.progress(world.database, claim, Progress(), points)


def events(text: str) -> list[tuple[int, dict[str, object]]]:
    found = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith("id: "):
            found.append((int(lines[0][4:]), json.loads(lines[1][6:])))
    return found


def test_a_curve_is_read(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    point = MetricPoint(step=10, epoch=0, train_loss=2.5, learning_rate=0.1, grad_norm=1.0)
    record(world, world.claim(run_id), point)
    assert client.get(f"/runs/{run_id}/metrics").get_json() == {
        "run_id": run_id,
        "points": [
            {
                "step": 10,
                "epoch": 0,
                "train_loss": 2.5,
                "val_loss": None,
                "learning_rate": 0.1,
                "grad_norm": 1.0,
                "tokens_per_sec": None,
                "step_ms": None,
                "mfu": None,
                "attempt": 1,
                "chain": None,
            }
        ],
    }


def test_a_curve_is_thinned(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    points = [MetricPoint(step=step, train_loss=1.0) for step in range(1, 101)]
    record(world, world.claim(run_id), *points)
    found = client.get(f"/runs/{run_id}/metrics?points=5").get_json()["points"]
    assert len(found) == 5
    assert (found[0]["step"], found[-1]["step"]) == (1, 100)


@pytest.mark.parametrize("query", ["points=1", "points=-1", "points=100001", "points=x", "p=5"])
def test_a_bad_number_of_points_is_refused(client: FlaskClient, world: World, query: str) -> None:
    assert client.get(f"/runs/{world.run()}/metrics?{query}").status_code == 422


def test_a_stream_takes_no_parameters(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.COMPLETED)
    assert client.get(f"/runs/{run_id}/metrics/stream?points=5").status_code == 422


def test_a_curve_is_followed_to_its_end(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    record(world, claim, MetricPoint(step=1, train_loss=3.0))

    def go_on() -> None:
        time.sleep(0.3)
        record(world, claim, MetricPoint(step=2, train_loss=2.0))
        time.sleep(1.5)
        record(world, claim, MetricPoint(step=2, val_loss=2.5))
        lease.finish(world.database, claim, Status.COMPLETED)

    thread = threading.Thread(target=go_on)
    thread.start()
    found = events(client.get(f"/runs/{run_id}/metrics/stream").text)
    thread.join(10)
    assert [(step, point["train_loss"], point["val_loss"]) for step, point in found] == [
        (1, 3.0, None),
        (2, 2.0, None),
        (2, 2.0, 2.5),
    ]


def test_a_stream_goes_on_behind_the_last_event(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    record(world, claim, *(MetricPoint(step=step, train_loss=1.0) for step in (1, 2, 3)))
    lease.finish(world.database, claim, Status.COMPLETED)
    path = f"/runs/{run_id}/metrics/stream"
    found = events(client.get(path, headers={"Last-Event-ID": "2"}).text)
    assert [step for step, _ in found] == [3]


def test_a_client_that_was_away_during_an_evaluation_gets_its_loss(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    record(world, claim, MetricPoint(step=2, train_loss=1.0))
    record(world, claim, MetricPoint(step=2, val_loss=1.5))
    lease.finish(world.database, claim, Status.COMPLETED)
    path = f"/runs/{run_id}/metrics/stream"
    found = events(client.get(path, headers={"Last-Event-ID": "2"}).text)
    assert [(step, point["val_loss"]) for step, point in found] == [(2, 1.5)]


def test_the_document_says_what_a_curve_sends_twice(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    record(world, claim, MetricPoint(step=1, val_loss=1.5), MetricPoint(step=2, train_loss=1.0))
    lease.finish(world.database, claim, Status.COMPLETED)
    path = f"/runs/{run_id}/metrics/stream"
    sent = [
        [step for step, _ in events(client.get(path, headers={"Last-Event-ID": given}).text)]
        for given in ("1", "2")
    ]
    assert sent == [[1, 2], []]
    document = client.get("/openapi.json").get_json()
    parameters = document["paths"]["/runs/{run_id}/metrics/stream"]["parameters"]
    [header] = [one for one in parameters if one["name"] == "Last-Event-ID"]
    assert "sent once more if it has the loss of an evaluation" in header["description"]


@pytest.mark.parametrize(("steps", "given"), [((), "1"), ((1, 2), "3"), ((1, 2), "9" * 18)])
def test_a_curve_that_never_came_so_far_cannot_be_gone_on_with(
    client: FlaskClient, world: World, steps: tuple[int, ...], given: str
) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    record(world, claim, *(MetricPoint(step=step, train_loss=1.0) for step in steps))
    response = client.get(f"/runs/{run_id}/metrics/stream", headers={"Last-Event-ID": given})
    assert (response.status_code, response.get_json()["code"]) == (422, "INVALID_INPUT")
    assert response.get_json()["details"][0]["field"] == "Last-Event-ID"
