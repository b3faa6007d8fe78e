"""Finished models and tokenizers on disk: published by one rename, described by a manifest.

``manifest.json`` holds the digest of every other file, so its own digest stands for the whole.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app.core.files import (
    disk_full_named,
    replace_directory,
    sha256_file,
    write_atomically,
)
from trainer_app.errors import DataNotFound, NotReady
from trainer_app.settings import Settings

MANIFEST: Final = "manifest.json"
_TAR_BLOCK: Final = 1 << 20
_GZIP: Final = 31  # zlib: a window of 2^15 bytes, in a gzip wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file of an artifact, named relative to its directory."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Where an artifact is and what it consists of."""

    storage: str  # "local", "data-bank"
    file_id: str | None  # in the data bank
    sha256: str  # of manifest.json, which holds the digests of the rest
    files: tuple[ArtifactFile, ...]


def model_directory(settings: Settings, run_id: str) -> Path:
    """Where the finished model of a run lies."""
    return settings.paths.artifacts / "models" / run_id


def tokenizer_directory(settings: Settings, tokenizer_id: str) -> Path:
    """Where a finished tokenizer lies."""
    return settings.paths.artifacts / "tokenizers" / tokenizer_id


def evaluation_file(settings: Settings, run_id: str, split: str) -> Path:
    """Where the last evaluation of a run on a split is kept.

    Beside the models, not in one: a published model is what its manifest says.
    """
    return settings.paths.artifacts / "evaluations" / run_id / f"{split}.json"


def read_evaluation(settings: Settings, run_id: str, split: str) -> dict[str, object] | None:
    """The last completed evaluation as clients see it; None where there was none."""
    try:
        text = evaluation_file(settings, run_id, split).read_bytes()
    except FileNotFoundError:
        return None
    found: dict[str, object] = json.loads(text)
    return found


def publish(
    staging: Path,
    final: Path,
    manifest: Mapping[str, object],
    *,
    known_digests: Mapping[str, str] | None = None,
) -> str:
    """Write the manifest into a finished folder and rename it into place.

    ``known_digests`` spares a second reading of files whose sha256 was taken while they were
    written. Returns the sha256 of the manifest.
    """
    digests = known_digests or {}
    files = {
        name: {
            "bytes": (staging / name).stat().st_size,
            "sha256": digests.get(name) or sha256_file(staging / name),
        }
        for name in _names(staging)
    }
    text = json.dumps({**manifest, "files": files}, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(staging / MANIFEST, text.encode() + b"\n")
    with disk_full_named(final):
        final.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(staging, final)
    return sha256_file(final / MANIFEST)


def read_manifest(directory: Path) -> dict[str, object]:
    """The manifest of a finished artifact; raises NotReady where there is none."""
    try:
        manifest: dict[str, object] = json.loads((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise NotReady(f"{directory.name} has no finished artifact yet") from None
    return manifest


def pointer(directory: Path) -> Pointer:
    """What an artifact consists of; raises NotReady where there is none."""
    files = read_manifest(directory)["files"]
    assert isinstance(files, dict)
    manifest_file = directory / MANIFEST
    sha256 = sha256_file(manifest_file)
    own = ArtifactFile(name=MANIFEST, bytes=manifest_file.stat().st_size, sha256=sha256)
    listed = [
        ArtifactFile(name=name, bytes=entry["bytes"], sha256=entry["sha256"])
        for name, entry in files.items()
    ]
    return Pointer(
        storage="local",
        file_id=None,
        sha256=sha256,
        files=tuple(sorted([*listed, own], key=lambda file: file.name)),
    )


def open_file(directory: Path, name: str) -> tuple[Path, ArtifactFile]:
    """A file of an artifact by its listed name, so that no other file can be named."""
    for file in pointer(directory).files:
        if file.name == name:
            return directory / name, file
    raise DataNotFound(f"the artifact of {directory.name} has no file of this name")


def stream_tar(directory: Path) -> Iterator[bytes]:
    """The artifact as a tar.gz, made while it is read; the same bytes for the same files.

    Weights do not compress: level 0 stores them, which costs no time.
    """
    deflate = zlib.compressobj(level=0, wbits=_GZIP)
    for block in _tar(directory):
        yield deflate.compress(block)
    yield deflate.flush()


def _tar(directory: Path) -> Iterator[bytes]:
    for file in pointer(directory).files:
        header = tarfile.TarInfo(f"{directory.name}/{file.name}")
        header.size = file.bytes
        header.mode = 0o644
        yield header.tobuf(format=tarfile.PAX_FORMAT)
        with (directory / file.name).open("rb") as source:
            while block := source.read(_TAR_BLOCK):
                yield block
        yield bytes(-file.bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _names(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found if path.name != MANIFEST)
