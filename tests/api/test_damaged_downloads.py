"""Models whose bytes were damaged without a change of size: none is downloaded as whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.api.served import served
from trainer_app import artifacts
from trainer_app.artifacts import BLOCK
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from pathlib import Path

    from flask.testing import FlaskClient

    from tests.api.conftest import World

SMALL = b"0123456789"
LARGE = bytes(range(256)) * (5 * BLOCK // 512)  # two blocks and a half
PATHS = ["artifact/weights", "artifact.tar.gz"]


def damaged(world: World, data: bytes) -> str:
    """A run with a model of one file, of which one bit is not as it was published."""
    run_id = world.run(Status.COMPLETED)
    weights = world.model(run_id, weights=data) / "weights"
    weights.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return run_id


@pytest.mark.parametrize("path", PATHS)
def test_a_small_file_that_is_damaged_is_a_conflict_that_names_it(
    client: FlaskClient, world: World, path: str
) -> None:
    run_id = damaged(world, SMALL)
    response = client.get(f"/runs/{run_id}/{path}")
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
    assert f"{run_id}: its weights is damaged" in response.get_json()["message"]


@pytest.mark.usefixtures("settings")
def test_the_download_of_a_large_file_that_is_damaged_is_cut_and_the_log_says_why(
    world: World, tmp_path: Path
) -> None:
    run_id, whole_id = damaged(world, LARGE), world.run(Status.COMPLETED)
    directory = world.model(whole_id, weights=LARGE)
    log = tmp_path / "server.log"

    with served(log, {}) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for path in PATHS:
            received: list[bytes] = []
            with client.stream("GET", f"/runs/{run_id}/{path}") as response:
                assert response.status_code == 200
                with pytest.raises(httpx.RemoteProtocolError):
                    received.extend(response.iter_raw())
            assert BLOCK <= sum(map(len, received)) < len(LARGE)  # the last block was held back
        whole = client.get(f"/runs/{whole_id}/artifact/weights")
        archive = client.get(f"/runs/{whole_id}/artifact.tar.gz")

    assert (whole.headers["Content-Length"], whole.content) == (str(len(LARGE)), LARGE)
    assert archive.content == b"".join(
        artifacts.stream_tar(directory, artifacts.pointer(directory).files)
    )
    lines = [line for line in log.read_text().splitlines() if "a download was broken off" in line]
    assert len(lines) == len(PATHS)
    assert all(run_id in line and "weights is damaged" in line for line in lines)
    assert not any(whole_id in line for line in lines)


@pytest.mark.parametrize("data", [b"", LARGE], ids=["empty", "large"])
def test_a_whole_file_comes_whole(client: FlaskClient, world: World, data: bytes) -> None:
    run_id = world.run(Status.COMPLETED)
    world.model(run_id, weights=data)
    response = client.get(f"/runs/{run_id}/artifact/weights")
    assert (response.status_code, response.data) == (200, data)


def test_a_part_and_the_head_of_a_damaged_file_are_answered_as_before(
    client: FlaskClient, world: World
) -> None:
    path = f"/runs/{damaged(world, SMALL)}/artifact/weights"
    assert client.get(path, headers={"Range": "bytes=4-"}).data == SMALL[4:]
    assert client.head(path).status_code == 200
