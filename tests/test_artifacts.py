"""Artifacts: one rename, a manifest that holds every digest, and no way to another file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from trainer_app import artifacts
from trainer_app.errors import DataNotFound, ModelIncompatible, NotReady
from trainer_app.restore import is_whole


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
    source, file = artifacts.open_file(model, "eval/metrics.json")

    with source:
        assert source.read() == b"{}\n"
    assert file.bytes == 3


def listed(**entry: object) -> bytes:
    return json.dumps(
        {"files": {"config.json": {"bytes": 1, "sha256": "0" * 64, **entry}}}
    ).encode()


def named(name: str) -> bytes:
    return json.dumps({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}).encode()


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"files": []}',
        b'{"files": {"config.json": []}}',
        b'{"files": {"config.json": {}}}',
        listed(bytes=-1),
        listed(bytes=True),
        listed(bytes="1"),
        listed(sha256=None),
        listed(sha256="0"),
        named("../secret"),
        named("/etc/passwd"),
        named("a//b"),
        named(""),
        named("a\\b"),
        named("\ud800"),
        named("manifest.json"),
        b'{"a": "' + b"x" * (17 << 20) + b'", "files": {}}',
    ],
    ids=lambda damaged: repr(damaged[:40]),
)
def test_a_manifest_that_no_artifact_has_is_refused_by_name(model: Path, damaged: bytes) -> None:
    (model / "manifest.json").write_bytes(damaged)

    for read in (artifacts.read_manifest, artifacts.pointer):
        with pytest.raises(ModelIncompatible, match=r"run-1: its manifest\.json"):
            read(model)
    assert not is_whole(model)


def test_what_a_link_stands_for_is_not_opened(model: Path) -> None:
    secret = model.parent / "secret"
    secret.write_bytes((model / "config.json").read_bytes())
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(secret)

    assert not is_whole(model)
    with pytest.raises(FileNotFoundError):
        artifacts.open_file(model, "config.json")
    with pytest.raises(FileNotFoundError):
        list(artifacts.stream_tar(model, artifacts.pointer(model).files))


def test_an_archive_is_of_the_manifest_that_was_checked_and_of_no_later_one(model: Path) -> None:
    files = artifacts.pointer(model).files
    (model / "config.json").write_bytes(b"{}")
    changed = model.with_name("changed")
    model.rename(changed)
    artifacts.publish(changed, model, {"run_id": "run-1"})

    with pytest.raises(ModelIncompatible, match=r"config\.json is damaged"):
        list(artifacts.stream_tar(model, files))


def test_a_manifest_is_not_a_link(model: Path) -> None:
    (model / "manifest.json").rename(model.parent / "elsewhere")
    (model / "manifest.json").symlink_to(model.parent / "elsewhere")

    with pytest.raises(NotReady):
        artifacts.pointer(model)


def test_the_folder_is_not_a_link(model: Path) -> None:
    files = artifacts.pointer(model).files
    elsewhere = model.parent / "elsewhere"
    model.rename(elsewhere)
    model.symlink_to(elsewhere)

    assert not is_whole(model)
    with pytest.raises(NotReady):
        artifacts.pointer(model)
    with pytest.raises(FileNotFoundError):
        list(artifacts.stream_tar(model, files))


def test_what_is_not_published_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="run-9"):
        artifacts.pointer(tmp_path / "run-9")


def test_the_archive_holds_the_files_and_is_the_same_each_time(model: Path) -> None:
    archive = b"".join(artifacts.stream_tar(model, artifacts.pointer(model).files))

    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        names = tar.getnames()
        weights = tar.extractfile("run-1/model.safetensors")
        assert weights is not None
        assert weights.read() == (model / "model.safetensors").read_bytes()
    assert names == [f"run-1/{file.name}" for file in artifacts.pointer(model).files]
    assert archive == b"".join(artifacts.stream_tar(model, artifacts.pointer(model).files))
