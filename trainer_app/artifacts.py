"""Finished models and tokenizers on disk: published by one rename, described by a manifest.

``manifest.json`` holds the digest of every other file, so its own digest stands for the whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trainer_app.core.files import (
    disk_full_named,
    replace_directory,
    sha256_file,
    write_atomically,
)
from trainer_app.errors import DataNotFound, ModelIncompatible, NotReady
from trainer_app.safe_paths import is_plain_name, open_beneath, open_regular
from trainer_app.settings import Settings

MANIFEST: Final = "manifest.json"
BLOCK: Final = 1 << 20  # bytes that are read at once
_LARGEST: Final = 16 << 20  # bytes of JSON that are read: more than any manifest has
_FIGURES: Final = ("loss", "perplexity", "bits_per_byte")  # of an evaluation
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
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
    """The last completed evaluation as clients see it; None where there was none.

    Raises ModelIncompatible where its file is damaged.
    """
    try:
        with open_regular(evaluation_file(settings, run_id, split)) as file:
            text = file.read(_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        text = b""  # no plain file
    try:
        return _evaluation(json.loads(text), run_id, split)
    except (ValueError, KeyError, OverflowError, RecursionError):
        raise ModelIncompatible(
            f"{run_id}: the file of its {split} evaluation is damaged"
        ) from None


def _evaluation(content: object, run_id: str, split: str) -> dict[str, object]:
    """What was written when the evaluation had completed: it is served as it is."""
    found = _object(content)
    known = {"run_id": run_id, "split": split, "status": "completed", "error": None}
    texts = [found["request_id"], found["artifact_path"]]
    if found["path_override"] is not None:
        texts.append(found["path_override"])
    if (
        any(found[name] != value for name, value in known.items())
        or not all(isinstance(text, str) for text in texts)
        or not all(_is_figure(found[name]) for name in _FIGURES)
    ):
        raise ValueError("not what was measured")
    return found


def publish(
    staging: Path,
    final: Path,
    manifest: Mapping[str, object],
    *,
    known_digests: Mapping[str, str] | None = None,
    copy: Path | None = None,
) -> str:
    """Write the manifest into a finished folder and rename it into place.

    ``known_digests`` spares a second reading of files whose sha256 was taken while they were
    written; ``copy`` is where it is copied to first if it lies on another file system. Returns the
    sha256 of the manifest.
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
    data = text.encode() + b"\n"
    write_atomically(staging / MANIFEST, data)
    with disk_full_named(final):
        final.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(staging, final, copy=copy)
    return hashlib.sha256(data).hexdigest()  # of what was written, whatever is there by now


def read_manifest(directory: Path, *, sealed: str | None = None) -> dict[str, object]:
    """The manifest of a finished artifact; ``sealed`` as in ``pointer``.

    Raises NotReady where there is none, ModelIncompatible for one that no artifact has.
    """
    return _read(directory, sealed).manifest


def pointer(directory: Path, *, sealed: str | None = None) -> Pointer:
    """What an artifact consists of; raises as ``read_manifest`` does.

    ``sealed``: the digest that its manifest had when it was published, if that is known. Another
    manifest is a damaged one, however well it fits the files.
    """
    found = _read(directory, sealed)
    own = ArtifactFile(name=MANIFEST, bytes=found.bytes, sha256=found.sha256)
    return Pointer(
        storage="local",
        file_id=None,
        sha256=found.sha256,
        files=tuple(sorted([*found.files, own], key=lambda file: file.name)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """manifest.json, checked: its files have plain names, sizes and digests."""

    manifest: dict[str, object]
    files: tuple[ArtifactFile, ...]
    bytes: int
    sha256: str


def _read(directory: Path, sealed: str | None = None) -> _Manifest:
    try:
        with open_inside(directory, MANIFEST) as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise NotReady(f"{directory.name} has no finished artifact") from None
    sha256 = hashlib.sha256(data).hexdigest()
    damaged = ModelIncompatible(
        f"{directory.name}: its {MANIFEST} is damaged, it is not what was published"
    )
    if sealed not in (None, sha256):
        raise damaged
    try:
        manifest = _object(json.loads(data[:_LARGEST]))  # one that is longer is cut, and so damaged
        files = tuple(_file(name, entry) for name, entry in _object(manifest["files"]).items())
    except (ValueError, KeyError, RecursionError):
        raise damaged from None
    return _Manifest(manifest=manifest, files=files, bytes=len(data), sha256=sha256)


def _is_figure(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one error for all that is damaged
    return value


def _file(name: str, value: object) -> ArtifactFile:
    entry = _object(value)
    size, sha256 = entry["bytes"], entry["sha256"]
    # Names are checked here, once: whoever reads the list opens what it names.
    if name == MANIFEST or not is_plain_name(name):
        raise ValueError("not a name of an artifact's file")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("not a size")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError("not a digest")
    return ArtifactFile(name=name, bytes=size, sha256=sha256)


def open_inside(directory: Path, name: str) -> BinaryIO:
    """A file of an artifact's folder, which is as little to be a link as what is in it.

    Raises as ``open_beneath`` does. The folder that holds the artifacts may be a link, to another
    disk for example.
    """
    return open_beneath(directory.parent, f"{directory.name}/{name}")


def open_file(
    directory: Path, name: str, *, sealed: str | None = None
) -> tuple[BinaryIO, ArtifactFile]:
    """A file of an artifact by its listed name, so that no other file can be named.

    Raises as ``pointer`` does, DataNotFound for a name that is not listed, and
    FileNotFoundError for a listed file that is not there, or that a link stands for.
    """
    for file in pointer(directory, sealed=sealed).files:
        if file.name == name:
            return open_inside(directory, name), file
    raise DataNotFound(f"the artifact of {directory.name} has no file of this name")


def checked(source: BinaryIO, file: ArtifactFile) -> Iterator[bytes]:
    """A file's bytes, the last of them, ``BLOCK`` at most, once all are known to be as published.

    Raises ModelIncompatible in their place where the digest is not the manifest's.
    """
    digest = hashlib.sha256()
    held = b""
    while block := source.read(BLOCK):
        digest.update(block)
        if held:
            yield held
        held = block
    if digest.hexdigest() != file.sha256:
        raise ModelIncompatible(f"{file.name} is damaged: its SHA-256 is not the manifest's")
    yield held


def stream_tar(directory: Path, files: Sequence[ArtifactFile]) -> Iterator[bytes]:
    """The artifact as a tar.gz, made while it is read; the same bytes for the same files.

    ``files``: what ``pointer`` has found it to consist of. The manifest is not asked again: one
    that is another by now is a file that has changed. Weights do not compress: level 0 stores
    them, which costs no time. Raises ModelIncompatible before the end of a file that is not as it
    was published.
    """
    deflate = zlib.compressobj(level=0, wbits=_GZIP)
    for block in _tar(directory, files):
        yield deflate.compress(block)
    yield deflate.flush()


def _tar(directory: Path, files: Sequence[ArtifactFile]) -> Iterator[bytes]:
    for file in files:
        header = tarfile.TarInfo(f"{directory.name}/{file.name}")
        header.size = file.bytes
        header.mode = 0o644
        yield header.tobuf(format=tarfile.PAX_FORMAT)
        with open_inside(directory, file.name) as source:
            yield from checked(source, file)
        yield bytes(-file.bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _names(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found if path.name != MANIFEST)
