"""What went wrong in other systems of this kind, at the door: each test would have caught it.

Those about learning are in tests/core/test_lessons.py, those about jobs in tests/tasks.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import redis
from flask.testing import FlaskClient

from trainer_app import artifacts
from trainer_app.events import STREAM
from trainer_app.settings import Settings
from trainer_app.store import lease
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]


def next_job(settings: Settings) -> str:
    """The job of the next message on the training queue, whatever its priority."""
    queues = ["trainer", *(f"trainer\x06\x16{priority}" for priority in range(1, 10))]
    with redis.Redis.from_url(settings.redis.url) as client:
        received = client.blpop(queues, timeout=10)
    assert isinstance(received, (list, tuple))
    (job_id,), _, _ = json.loads(base64.b64decode(json.loads(received[1])["body"]))
    return str(job_id)


def test_a_run_that_a_quick_worker_has_finished_does_not_show_as_queued(
    client: FlaskClient, world: World, body: Body
) -> None:
    """The row is there before the message is: a worker cannot be too quick for it."""
    finished: list[str] = []

    def work() -> None:
        claim = world.claim(next_job(world.settings))
        lease.finish(world.database, claim, Status.COMPLETED)
        finished.append(claim.job_id)

    worker = threading.Thread(target=work)
    worker.start()
    run_id = client.post("/runs/train", json=body).get_json()["run_id"]
    worker.join(20)

    assert finished == [run_id]
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "completed"


def test_runs_of_one_second_have_names_of_their_own(client: FlaskClient, body: Body) -> None:
    began = time.monotonic()
    names = {client.post("/runs/train", json=body).get_json()["run_id"] for _ in range(20)}
    assert len(names) == 20
    assert time.monotonic() - began < 20


def test_tokenizers_of_other_settings_overwrite_none(client: FlaskClient, world: World) -> None:
    """Names are not made of a hash of settings, nor of anything that two may share."""
    world.corpus()
    base = {"method": "char", "vocab_size": 100, "corpus_path": "tale.txt"}
    changes: list[Body] = [{}, {}, {"vocab_size": 101}, {"seed": 7}]
    accepted = [
        client.post("/tokenizers/train", json={**base, **change}).get_json() for change in changes
    ]
    assert len({one["tokenizer_id"] for one in accepted}) == len(changes)
    assert len({one["artifact_path"] for one in accepted}) == len(changes)


def test_a_folder_beside_the_root_whose_name_begins_like_it_is_outside(
    client: FlaskClient, world: World, body: Body
) -> None:
    """A check by prefix without the separator would let it pass."""
    root = world.settings.paths.corpus
    beside = root.with_name(f"{root.name}-private")
    beside.mkdir(parents=True)
    (beside / "a.txt").write_text("secret\n" * 100)
    for path in (f"../{beside.name}/a.txt", f"{beside}/a.txt", "-private/a.txt"):
        assert client.post("/runs/train", json=body | {"corpus_path": path}).status_code == 404


def test_no_name_in_a_body_becomes_a_path(client: FlaskClient, body: Body) -> None:
    for field in ("model_size", "model_family", "corpus_file_id", "tokenizer_id"):
        changed = {name: value for name, value in body.items() if name != "corpus_path"}
        answer = client.post("/runs/train", json={**changed, field: "../../etc"})
        assert answer.status_code in {404, 422}, field


def test_every_key_that_the_api_sets_in_redis_expires(
    settings: Settings,
    make_client: Callable[[Settings], FlaskClient],
    world: World,
    body: Body,
) -> None:
    security = replace(settings.security, rate_limit="100/minute")
    client = make_client(replace(settings, security=security))
    model = world.run(Status.COMPLETED)
    world.model(model)
    run_id = client.post("/runs/train", json=body).get_json()["run_id"]
    client.post(f"/runs/{run_id}/cancel")
    client.post(f"/runs/{model}/chat", json={"message": "hello"})

    with redis.Redis.from_url(settings.redis.url, decode_responses=True) as connection:
        for_ever = {name for name in connection.scan_iter() if connection.ttl(name) == -1}

    # The broker's own: bindings, and queues, which empty themselves. The stream is capped instead.
    queues = {"trainer", "trainer.inference"}
    for_ever.discard(STREAM)
    assert {
        name
        for name in for_ever
        if not name.startswith("_kombu.") and name.partition("\x06")[0] not in queues
    } == set()


def test_no_time_is_lost_on_pressing_weights_together(world: World) -> None:
    """They do not compress: of a run of 46 s, gzip once took most of what was not training."""
    run_id = world.run(Status.COMPLETED)
    weights = bytes(range(256)) * 4 * 65_536  # 64 MiB
    directory = world.model(run_id, weights=weights)
    began = time.process_time()
    sent = sum(
        len(block) for block in artifacts.stream_tar(directory, artifacts.pointer(directory).files)
    )
    assert time.process_time() - began < 1
    assert sent >= len(weights)
