"""Artifacts: one rename, a manifest that holds every digest, and no way to another file."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from trainer_app import artifacts
from trainer_app.errors import DataNotFound, NotReady


@pytest.fixture
def model(tmp_path: Path) -> Path:
    staging = tmp_path / "staging"
    (staging / "eval").mkdir(parents=True)
    (staging / "config.json").write_bytes(b'{"model_type": "gpt2"}')
    (staging / "eval" / "metrics.json").write_bytes(b"{}\n")
    (staging / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    final = tmp_path / "models" / "run-1"
    artifacts.publish(staging, final, {"run_id": "run-1"})
    return final


def test_a_published_artifact_is_moved_whole(model: Path, tmp_path: Path) -> None:
    assert not (tmp_path / "staging").exists()
    assert artifacts.read_manifest(model)["run_id"] == "run-1"
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json",
        "eval",
        "manifest.json",
        "model.safetensors",
    ]


def test_the_pointer_holds_the_size_and_digest_of_every_file(model: Path) -> None:
    pointer = artifacts.pointer(model)

    assert [file.name for file in pointer.files] == [
        "config.json",
        "eval/metrics.json",
        "manifest.json",
        "model.safetensors",
    ]
    for file in pointer.files:
        data = (model / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert pointer.sha256 == hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()


def test_publishing_again_replaces_what_an_earlier_attempt_left(
    model: Path, tmp_path: Path
) -> None:
    staging = tmp_path / "again"
    staging.mkdir()
    (staging / "config.json").write_bytes(b"{}")

    artifacts.publish(staging, model, {"run_id": "run-1", "attempts": 2})

    assert artifacts.read_manifest(model)["attempts"] == 2
    assert not (model / "model.safetensors").exists()
    assert [path.name for path in model.parent.iterdir()] == ["run-1"]


def test_a_digest_that_is_known_is_not_computed_again(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "model.safetensors").write_bytes(b"weights")

    artifacts.publish(
        staging, tmp_path / "final", {}, known_digests={"model.safetensors": "f" * 64}
    )

    assert artifacts.pointer(tmp_path / "final").files[1].sha256 == "f" * 64


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "eval", "eval/../config.json", "", ".", "Config.json"]
)
def test_only_listed_names_can_be_opened(model: Path, name: str) -> None:
    (model.parent / "secret").write_text("not yours")

    with pytest.raises(DataNotFound):
        artifacts.open_file(model, name)


def test_a_listed_file_is_opened_by_its_name(model: Path) -> None:
    path, file = artifacts.open_file(model, "eval/metrics.json")

    assert path.read_bytes() == b"{}\n"
    assert file.bytes == 3


def test_what_is_not_published_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="run-9"):
        artifacts.pointer(tmp_path / "run-9")


def test_the_archive_holds_the_files_and_is_the_same_each_time(model: Path) -> None:
    archive = b"".join(artifacts.stream_tar(model))

    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        names = tar.getnames()
        weights = tar.extractfile("run-1/model.safetensors")
        assert weights is not None
        assert weights.read() == (model / "model.safetensors").read_bytes()
    assert names == [f"run-1/{file.name}" for file in artifacts.pointer(model).files]
    assert archive == b"".join(artifacts.stream_tar(model))
