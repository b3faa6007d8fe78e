"""Uploaded texts: the embedded data bank."""

from __future__ import annotations

from functools import partial

from flask import Response, request

from trainer_app.api import current, uploads
from trainer_app.api.accept import KEY_PARAMETER, idempotency_key, location_header
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.corpora_schema import CorpusPageSchema, CorpusSchema
from trainer_app.api.examples import CORPUS_ID
from trainer_app.api.schema import PageQuery, PageQuerySchema
from trainer_app.api.text_scan import Text
from trainer_app.store import corpora
from trainer_app.store.corpora import Corpus
from trainer_app.store.pages import Page
from trainer_app.upload_folder import corpus_path, exclusive, make_folder

blueprint = Blueprint("corpora", __name__, description="Texts to train on.")

_TEXT = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "text/plain": {"schema": _TEXT, "example": "Once upon a time there was a king.\n"},
        "application/octet-stream": {"schema": _TEXT},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {uploads.FIELD: _TEXT},
                "required": [uploads.FIELD],
                "additionalProperties": False,
            },
            "encoding": {uploads.FIELD: {"contentType": "text/plain"}},
        },
    },
}


@blueprint.route("/corpora", methods=["POST"])
@blueprint.response(201, CorpusSchema, headers=location_header(f"/corpora/{CORPUS_ID}"))
# Not at the route, whose parameters are those of GET as well.
@blueprint.doc(operationId="uploadCorpus", requestBody=_BODY, parameters=[KEY_PARAMETER])
@blueprint.leads_to("getCorpus", "deleteCorpus", file_id="$response.body#/file_id")
@blueprint.fails_with("CORPUS_EMPTY", "CORPUS_NOT_TEXT", "UNAVAILABLE")
def upload_corpus() -> tuple[Corpus, dict[str, str]]:
    """Upload a UTF-8 text; the same bytes give the same id."""
    # Before gigabytes are sent in vain.
    idempotency_key("")
    current.database().ping(to_write=True)
    settings = current.settings()
    corpus = uploads.store_upload(
        request,
        settings.paths.uploads,
        settings.api.max_upload_bytes,
        _record,
        partial(corpora.unless_recorded, current.database()),
    )
    return corpus, {"Location": f"/corpora/{corpus.file_id}"}


@blueprint.route("/corpora")
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, CorpusPageSchema)
@blueprint.doc(operationId="listCorpora")
@blueprint.fails_with("UNAVAILABLE")
def list_corpora(query: PageQuery) -> Page[Corpus]:
    """List corpora, newest first."""
    return corpora.list_(current.database(), **query)


@blueprint.route("/corpora/<id:file_id>")
@blueprint.response(200, CorpusSchema)
@blueprint.doc(operationId="getCorpus")
@blueprint.fails_with("CORPUS_NOT_FOUND", "UNAVAILABLE")
def get_corpus(file_id: str) -> Corpus:
    """Tell what a corpus is."""
    return corpora.get(current.database(), file_id)


@blueprint.route("/corpora/<id:file_id>", methods=["DELETE"])
@blueprint.response(204)
@blueprint.doc(operationId="deleteCorpus")
@blueprint.fails_with("CORPUS_NOT_FOUND", "CONFLICT", "UNAVAILABLE")
def delete_corpus(file_id: str) -> Response:
    """Delete a corpus that no queued or running job reads."""
    folder = current.settings().paths.uploads
    corpora.get(current.database(), file_id)  # no lock, and no folder to hold it, for nothing
    make_folder(folder)  # somebody may have taken it away
    with exclusive(folder):
        corpora.delete(current.database(), file_id)
        corpus_path(folder, file_id).unlink(missing_ok=True)
    return Response(status=204)


def _record(text: Text) -> Corpus:
    key = idempotency_key(text.sha256)
    return corpora.add(current.database(), text.sha256, text.bytes, text.lines, idempotency=key)
