"""Finished models: what they consist of, and their files."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import structlog
from flask import Response, request
from werkzeug.wsgi import wrap_file

from trainer_app import artifacts
from trainer_app.api import conditions, current, download_headers
from trainer_app.api.artifacts_schema import PointerSchema
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.examples import RUN_ID
from trainer_app.api.schema import ErrorSchema
from trainer_app.artifacts import ArtifactFile, Pointer
from trainer_app.errors import ModelIncompatible, NotReady
from trainer_app.restore import damage, damaged_of, unfinished
from trainer_app.store import runs
from trainer_app.store.tables import Status
from trainer_app.store.uploads import DATA_BANK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainer_app.store.runs import Run

blueprint = Blueprint("artifacts", __name__, description="Finished models.")

_log = structlog.get_logger(__name__)
_BINARY = {"type": "string", "format": "binary"}


@blueprint.route("/runs/<id:run_id>/artifact")
@blueprint.response(200, PointerSchema)
@blueprint.doc(operationId="getArtifact")
@blueprint.fails_with("RUN_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "UNAVAILABLE")
def get_artifact(run_id: str) -> Pointer:
    """List the files of a run's finished model."""
    run = runs.get(current.database(), run_id)
    with _manifest_missed(run):
        found = artifacts.pointer(_directory(run), sealed=run.artifact_sha256)
    return replace(
        found,
        storage=run.artifact_storage or "local",
        file_id=run.artifact_file_id,
    )


@blueprint.route("/runs/<id:run_id>/artifact.tar.gz")
@blueprint.response(
    200,
    _BINARY,
    content_type="application/gzip",
    description="All files, as a tar.gz",
    headers=download_headers.attachment(f"{RUN_ID}.tar.gz"),
)
@blueprint.doc(operationId="downloadArtifact")
@blueprint.fails_with("RUN_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "UNAVAILABLE")
def download_artifact(run_id: str) -> Response:
    """Download a run's finished model in one piece."""
    run = runs.get(current.database(), run_id)
    directory = _directory(run)
    with _manifest_missed(run):
        # raises here what a stream could no longer say
        files = artifacts.pointer(directory, sealed=run.artifact_sha256).files
    damaged = damaged_of(directory, files)
    if damaged is not None:
        raise _elsewhere(run, damaged)
    for file in files:
        if file.bytes <= artifacts.BLOCK:
            # One that is gone since then ends the stream.
            with suppress(FileNotFoundError), artifacts.open_inside(directory, file.name) as source:
                _check(run, source, file)
    blocks = _told(run, artifacts.stream_tar(directory, files))
    response = Response(blocks, mimetype="application/gzip")
    response.headers.set("Content-Disposition", "attachment", filename=f"{run_id}.tar.gz")
    return response


@blueprint.route("/runs/<id:run_id>/artifact/<path:name>", parameters=download_headers.CONDITIONS)
@blueprint.response(
    200,
    _BINARY,
    content_type="application/octet-stream",
    description="The file's bytes",
    headers=download_headers.WHOLE,
)
@blueprint.alt_response(
    206,
    schema=_BINARY,
    content_type="application/octet-stream",
    description="The part that Range asks for",
    headers=download_headers.PART,
)
@blueprint.alt_response(
    304,
    description="If-None-Match or If-Modified-Since names the file that there is",
    headers=download_headers.UNCHANGED,
)
@blueprint.alt_response(
    412,
    schema=ErrorSchema,
    description="If-Match names another file, or If-Unmodified-Since a time before the file's",
)
@blueprint.alt_response(
    416,
    schema=ErrorSchema,
    description="Range lies behind the end",
    headers=download_headers.BEHIND_THE_END,
)
@blueprint.doc(operationId="downloadArtifactFile")
@blueprint.fails_with(
    "RUN_NOT_FOUND", "DATA_NOT_FOUND", "NOT_READY", "MODEL_INCOMPATIBLE", "UNAVAILABLE"
)
def download_artifact_file(run_id: str, name: str) -> Response:
    """Download one file of a run's finished model; a Range resumes."""
    run = runs.get(current.database(), run_id)
    try:
        with _manifest_missed(run):
            source, file = artifacts.open_file(_directory(run), name, sealed=run.artifact_sha256)
    except FileNotFoundError:
        raise _elsewhere(run, name) from None
    with ExitStack() as opened:
        opened.enter_context(source)
        if os.fstat(source.fileno()).st_size != file.bytes:
            raise _elsewhere(run, name)  # cut short: half a file would pass for a whole one
        response = _file_response(source, file)
        if response.status_code == HTTPStatus.OK and request.method == "GET":
            if file.bytes <= artifacts.BLOCK:
                _check(run, source, file)
                source.seek(0)
            response.response = _told(run, artifacts.checked(source, file))
            response.direct_passthrough = False  # would not close what is not its iterator's
            response.call_on_close(source.close)
        opened.pop_all()  # it is the response's to close
    return response


def _check(run: Run, source: BinaryIO, file: ArtifactFile) -> None:
    """Read a small file: while nothing is sent the answer can still be that it is damaged."""
    try:
        for _ in artifacts.checked(source, file):
            pass
    except ModelIncompatible:
        raise ModelIncompatible(damage(run.run_id, file.name)) from None


def _told(run: Run, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks of an answer that ends short of its end, as the log tells, at what is damaged.

    The server closes the connection then, and the client knows that something is missing.
    """
    try:
        yield from blocks
    except ModelIncompatible as error:
        _log.error("a download was broken off", run_id=run.run_id, reason=error.message)
        raise


def _file_response(source: BinaryIO, file: ArtifactFile) -> Response:
    """What send_file answers for a path: with the name already opened nobody can swap the file."""
    found = os.fstat(source.fileno())
    response = Response(
        wrap_file(request.environ, source),
        mimetype="application/octet-stream",
        direct_passthrough=True,
    )
    response.content_length = found.st_size
    response.cache_control.no_cache = True
    response.headers.set(
        "Content-Disposition", "attachment", filename=PurePosixPath(file.name).name
    )
    written = datetime.fromtimestamp(int(found.st_mtime), tz=UTC)
    version = conditions.Version(etag=file.sha256, modified=written, size=found.st_size)
    conditions.heed(response, version)
    return response


@contextmanager
def _manifest_missed(run: Run) -> Iterator[None]:
    """Say what a missing manifest means: a completed run gets none any more, others may yet."""
    try:
        yield
    except NotReady:
        if run.status is Status.COMPLETED:
            raise _elsewhere(run, artifacts.MANIFEST) from None
        raise NotReady(unfinished(run.run_id, run.status)) from None


def _elsewhere(run: Run, name: str) -> NotReady | ModelIncompatible:
    """Of a model whose files are not all there: clean-up deletes what the data bank has."""
    if run.artifact_storage == DATA_BANK:
        # A download starts nothing: whoever asks twice or lets go would start it twice.
        return NotReady(
            f"{run.run_id}: its {name} is in the data bank alone, in the tar.gz with the file_id "
            f"{run.artifact_file_id}. POST /runs/{run.run_id}/generate with "
            '{"prompt_text": "a", "max_new_tokens": 1} fetches the model back: ask again when '
            "that request is completed"
        )
    return ModelIncompatible(damage(run.run_id, name))


def _directory(run: Run) -> Path:
    return artifacts.model_directory(current.settings(), run.run_id)
