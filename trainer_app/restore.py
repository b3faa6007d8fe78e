"""A model's folder out of its archive: all that the manifest lists, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from trainer_app import artifacts
from trainer_app.artifacts import ArtifactFile
from trainer_app.core.files import disk_full_named, replace_directory, sha256_file
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.databank.digests import sha256_of, sha256_of_open
from trainer_app.errors import DataBankUnavailable, ModelIncompatible, NotReady
from trainer_app.safe_paths import is_plain_name

_BLOCK: Final = 1 << 20
# What every such folder has.
MODEL: Final = frozenset({"config.json", "model.safetensors"})
TOKENIZER: Final = frozenset({"tokenizer.json", "tokenizer_config.json"})
# What is loaded where it is there.
_LOADED: Final = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|tokenizer(_config)?\.(json|model)"
)


def lock_of(directory: Path) -> Path:
    """The lock of a model's folder: held while it is fetched, and while weights are deleted."""
    return directory.parent / f".{directory.name}.lock"


def is_whole(directory: Path, *, sealed: str | None = None) -> bool:
    """Whether all that the manifest lists is there, by name and size; links do not count."""
    return damaged_file(directory, sealed=sealed) is None


def damaged_file(directory: Path, *, sealed: str | None = None) -> str | None:
    """The first file that is not there as the manifest lists it; None: the folder is whole.

    ``sealed``: as in ``artifacts.pointer``.
    """
    try:
        files = artifacts.pointer(directory, sealed=sealed).files
    except (NotReady, ModelIncompatible):
        return artifacts.MANIFEST
    return damaged_of(directory, files)


def damaged_of(directory: Path, files: Sequence[ArtifactFile]) -> str | None:
    """The first of these files that is not there in its size; None: all are."""
    differing = _differing(directory, files)
    return None if differing is None else differing[0].name


def damage(run_id: str, name: str) -> str:
    """What is said of a completed run whose model lacks this file as it was published."""
    return f"{run_id}: its {name} is damaged or gone, it is not what was published"


def unfinished(run_id: str, status: str) -> str:
    """What is said of a run that has no model, and perhaps never will."""
    return f"{run_id} is {status}: it has no finished model"


def check_sizes(
    directory: Path, *, needed: frozenset[str] = MODEL, sealed: str | None = None
) -> None:
    """As ``check_digests``, but by names and sizes: nothing is read but the manifest."""
    differing = _differing(directory, _listed(directory, needed, sealed))
    if differing is None:
        return
    file, size = differing
    if size is None:
        raise _is_gone(file.name, directory)
    raise ModelIncompatible(
        f"{file.name} of {directory.name} is damaged: it has {size} bytes, not {file.bytes}"
    )


def check_digests(
    directory: Path,
    should_stop: ShouldStop,
    *,
    needed: frozenset[str] = MODEL,
    sealed: str | None = None,
) -> None:
    """Read all files of a published model or tokenizer; links are not followed.

    ``sealed``: as in ``artifacts.pointer``. Raises NotReady where there is none;
    ModelIncompatible, which names the file, where one has changed since or is gone, and where one
    that is ``needed`` or will be loaded has no digest; StopRequested.
    """
    for file in _listed(directory, needed, sealed):
        try:
            with artifacts.open_inside(directory, file.name) as opened:
                sha256 = sha256_of_open(opened, should_stop)
        except FileNotFoundError:
            raise _is_gone(file.name, directory) from None
        if sha256 != file.sha256:
            raise ModelIncompatible(
                f"{file.name} of {directory.name} is damaged: its SHA-256 is not the manifest's"
            )


def _differing(
    directory: Path, files: Sequence[ArtifactFile]
) -> tuple[ArtifactFile, int | None] | None:
    """The first file that has another size than the manifest says, and that; None: it is gone."""
    for file in files:
        try:
            size = _size(directory, file.name)
        except FileNotFoundError:
            return file, None
        if size != file.bytes:
            return file, size
    return None


def _listed(directory: Path, needed: frozenset[str], sealed: str | None) -> Sequence[ArtifactFile]:
    files = artifacts.pointer(directory, sealed=sealed).files
    loaded = {path.name for path in directory.iterdir() if _LOADED.fullmatch(path.name)} | needed
    if unlisted := loaded - {file.name for file in files}:
        named = ", ".join(sorted(unlisted))
        raise ModelIncompatible(f"{directory.name} is damaged: its manifest does not list {named}")
    return files


def _is_gone(name: str, directory: Path) -> ModelIncompatible:
    return ModelIncompatible(
        f"{name} of {directory.name} is damaged: it is gone, or no plain file any more"
    )


def _size(directory: Path, name: str) -> int:
    with artifacts.open_inside(directory, name) as file:
        return os.fstat(file.fileno()).st_size


def restore(
    archive: Path, directory: Path, *, staging: Path, sha256: str, should_stop: ShouldStop
) -> None:
    """Put the model in place of ``directory`` by one rename; ``sha256`` is its manifest's.

    The archive's own digest is the caller's to check. Raises DataBankUnavailable for an archive
    that holds links, devices, names that lead elsewhere, more bytes than it has itself, or other
    files than the manifest lists; DiskFull; StopRequested.
    """
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with disk_full_named(staging):
            _extract(archive, directory.name, staging, should_stop)
            _check(staging, sha256, should_stop)
        directory.parent.mkdir(parents=True, exist_ok=True)
        replace_directory(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extract(archive: Path, root: str, staging: Path, should_stop: ShouldStop) -> None:
    left = archive.stat().st_size  # what was stored does not shrink: more is no model of ours
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                left -= member.size
                source = tar.extractfile(member) if member.isreg() and left >= 0 else None
                if source is None:
                    raise DataBankUnavailable("the archive of the model holds what no model has")
                _copy(source, staging / _inside(member.name, root), should_stop)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DataBankUnavailable("the archive of the model cannot be read") from error


def _inside(name: str, root: str) -> Path:
    """A member's name relative to the model's folder."""
    first, _, rest = name.partition("/")
    if first != root or not is_plain_name(rest):
        raise DataBankUnavailable("the archive of the model holds a name that leads elsewhere")
    return Path(rest)


def _copy(source: IO[bytes], target: Path, should_stop: ShouldStop) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while block := source.read(_BLOCK):
            raise_if_stopped(should_stop)
            file.write(block)


def _check(staging: Path, sha256: str, should_stop: ShouldStop) -> None:
    manifest = staging / artifacts.MANIFEST
    if not manifest.is_file() or sha256_file(manifest) != sha256:
        raise DataBankUnavailable("the archive of the model has another manifest than it was given")
    try:
        files = artifacts.pointer(staging).files
    except ModelIncompatible as error:
        raise DataBankUnavailable(f"the archive of the model: {error.message}") from error
    there = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
    if there != {file.name for file in files}:
        raise DataBankUnavailable("the archive of the model holds other files than it lists")
    for file in files:
        if sha256_of(staging / file.name, should_stop) != file.sha256:
            raise DataBankUnavailable(f"the archive of the model has another {file.name}")
