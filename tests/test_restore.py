"""Archives of models: what was packed comes back whole, and nothing comes out beside it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from trainer_app import artifacts
from trainer_app.core.files import sha256_file
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, never
from trainer_app.errors import DataBankUnavailable
from trainer_app.restore import damaged_file, is_whole, restore

WEIGHTS = bytes(range(256)) * 9_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    staging = tmp_path / "staging"
    (staging / "eval").mkdir(parents=True)
    (staging / "config.json").write_bytes(b'{"model_type": "gpt2"}')
    (staging / "eval" / "metrics.json").write_bytes(b"{}\n")
    (staging / "model.safetensors").write_bytes(WEIGHTS)
    final = tmp_path / "models" / "run-1"
    artifacts.publish(staging, final, {"run_id": "run-1"})
    return final


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"".join(artifacts.stream_tar(model, artifacts.pointer(model).files)))
    return path


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "restore-run-1"


def repacked(archive: Path, change: Callable[[tarfile.TarInfo, bytes], object]) -> None:
    """Write the archive anew, each member as ``change`` has left it, and what it returns too."""
    out = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            data = file.read()
            extra = change(member, data)
            new.addfile(member, io.BytesIO(data) if member.isreg() else None)
            if isinstance(extra, tarfile.TarInfo):
                new.addfile(extra, io.BytesIO(bytes(extra.size)))
    archive.write_bytes(gzip.compress(out.getvalue(), compresslevel=0))


def test_a_model_comes_back_byte_for_byte(model: Path, archive: Path, staging: Path) -> None:
    before = artifacts.pointer(model)
    (model / "model.safetensors").unlink()

    restore(archive, model, staging=staging, sha256=before.sha256, should_stop=never)

    assert artifacts.pointer(model) == before
    assert (model / "model.safetensors").read_bytes() == WEIGHTS
    assert not staging.exists()


def test_a_model_comes_back_where_nothing_of_it_is_left(
    model: Path, archive: Path, staging: Path, tmp_path: Path
) -> None:
    sha256 = sha256_file(model / "manifest.json")
    elsewhere = tmp_path / "other" / "run-1"

    restore(archive, elsewhere, staging=staging, sha256=sha256, should_stop=never)

    assert (elsewhere / "eval" / "metrics.json").read_bytes() == b"{}\n"


def named(name: str) -> Callable[[tarfile.TarInfo, bytes], object]:
    def change(member: tarfile.TarInfo, _data: bytes) -> None:
        if member.name.endswith("config.json"):
            member.name = name

    return change


def linked(kind: bytes) -> Callable[[tarfile.TarInfo, bytes], object]:
    def change(member: tarfile.TarInfo, _data: bytes) -> None:
        if member.name.endswith("config.json"):
            member.type, member.size, member.linkname = kind, 0, "/etc/passwd"

    return change


def with_more(member: tarfile.TarInfo, _data: bytes) -> tarfile.TarInfo | None:
    """A file that no manifest lists."""
    if not member.name.endswith("config.json"):
        return None
    more = tarfile.TarInfo("run-1/zeros")
    more.size = 20
    return more


def altered(member: tarfile.TarInfo, _data: bytes) -> None:
    if member.name.endswith("metrics.json"):
        member.size = 2


def without_weights(member: tarfile.TarInfo, _data: bytes) -> None:
    if member.name.endswith("safetensors"):
        member.name = "run-1/other.safetensors"


def without_manifest(member: tarfile.TarInfo, _data: bytes) -> None:
    if member.name.endswith("manifest.json"):
        member.name = "run-1/other.json"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (named("../escaped"), "leads elsewhere"),
        (named("/tmp/escaped"), "leads elsewhere"),
        (named("run-1/../../escaped"), "leads elsewhere"),
        (named("run-1"), "leads elsewhere"),
        (named("run-2/config.json"), "leads elsewhere"),
        (named("run-1/.hidden"), "leads elsewhere"),
        (linked(tarfile.SYMTYPE), "what no model has"),
        (linked(tarfile.LNKTYPE), "what no model has"),
        (linked(tarfile.CHRTYPE), "what no model has"),
        (linked(tarfile.FIFOTYPE), "what no model has"),
        (linked(tarfile.DIRTYPE), "what no model has"),
        (with_more, "other files"),
        (altered, "another eval/metrics.json"),
        (without_weights, "other files"),
        (without_manifest, "another manifest"),
    ],
)
def test_an_archive_of_anything_else_changes_nothing(
    model: Path,
    archive: Path,
    staging: Path,
    change: Callable[[tarfile.TarInfo, bytes], object],
    why: str,
    tmp_path: Path,
) -> None:
    before = artifacts.pointer(model)
    repacked(archive, change)

    with pytest.raises(DataBankUnavailable, match=why):
        restore(archive, model, staging=staging, sha256=before.sha256, should_stop=never)

    assert artifacts.pointer(model) == before
    assert not staging.exists()
    assert not list(tmp_path.rglob("*escaped*"))


def test_an_archive_that_unpacks_to_more_than_itself_is_a_bomb(
    model: Path, archive: Path, staging: Path
) -> None:
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes())))

    with pytest.raises(DataBankUnavailable, match="what no model has"):
        restore(archive, model, staging=staging, sha256="0" * 64, should_stop=never)


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b" + bytes(100)])
def test_what_is_no_archive_changes_nothing(
    model: Path, archive: Path, staging: Path, data: bytes
) -> None:
    archive.write_bytes(data)

    with pytest.raises(DataBankUnavailable):
        restore(archive, model, staging=staging, sha256="0" * 64, should_stop=never)

    assert (model / "model.safetensors").exists()


def test_an_archive_that_breaks_off_changes_nothing(
    model: Path, archive: Path, staging: Path
) -> None:
    archive.write_bytes(archive.read_bytes()[:-50_000])

    with pytest.raises(DataBankUnavailable):
        restore(archive, model, staging=staging, sha256="0" * 64, should_stop=never)


def test_the_manifest_of_another_model_is_refused(
    model: Path, archive: Path, staging: Path
) -> None:
    with pytest.raises(DataBankUnavailable, match="manifest"):
        restore(archive, model, staging=staging, sha256="0" * 64, should_stop=never)


def test_a_manifest_that_is_none_is_refused_though_its_digest_is_the_one_that_was_given(
    model: Path, archive: Path, staging: Path
) -> None:
    def cut(member: tarfile.TarInfo, _data: bytes) -> None:
        if member.name.endswith("manifest.json"):
            member.size = 1

    repacked(archive, cut)

    with pytest.raises(DataBankUnavailable, match="damaged"):
        restore(archive, model, staging=staging, sha256=sha256(b"{").hexdigest(), should_stop=never)


def test_a_model_is_whole_while_each_of_its_files_has_its_size(model: Path) -> None:
    assert is_whole(model)
    assert damaged_file(model) is None
    (model / "eval" / "metrics.json").write_bytes(b"{}")
    assert not is_whole(model)
    assert damaged_file(model) == "eval/metrics.json"
    (model / "eval" / "metrics.json").unlink()
    assert not is_whole(model)
    assert not is_whole(model.with_name("run-2"))
    assert damaged_file(model.with_name("run-2")) == "manifest.json"


def test_a_stop_leaves_the_model_as_it_was(model: Path, archive: Path, staging: Path) -> None:
    with pytest.raises(StopRequested):
        restore(
            archive,
            model,
            staging=staging,
            sha256=sha256_file(model / "manifest.json"),
            should_stop=lambda: StopReason.DRAIN,
        )

    assert (model / "model.safetensors").read_bytes() == WEIGHTS
    assert not staging.exists()
