"""Tokenizers: train, list, look at."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from trainer_app.api import current, request_id
from trainer_app.api.accept import (
    KEY_PARAMETER,
    idempotency_key,
    location_header,
    require_services,
    wake,
)
from trainer_app.api.blueprint import Blueprint
from trainer_app.api.corpus_choice import chosen_corpus, sha256_of
from trainer_app.api.examples import TOKENIZER_ID
from trainer_app.api.schema import PageQuery, PageQuerySchema
from trainer_app.api.size_check import check_tokenizer_size
from trainer_app.api.tokenizers_schema import (
    TokenizerAcceptedSchema,
    TokenizerPageSchema,
    TokenizerSchema,
    TokenizerTrainSchema,
)
from trainer_app.artifacts import tokenizer_directory
from trainer_app.errors import RowDamaged
from trainer_app.queue import light_queue
from trainer_app.store import idempotency, tokenizers
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from trainer_app.core.spec import TokenizerSpec
    from trainer_app.store.tokenizers import Tokenizer

blueprint = Blueprint("tokenizers", __name__, description="Tokenizers.")


@blueprint.route("/tokenizers/train", methods=["POST"], parameters=[KEY_PARAMETER])
@blueprint.arguments(TokenizerTrainSchema)
@blueprint.response(
    202, TokenizerAcceptedSchema, headers=location_header(f"/tokenizers/{TOKENIZER_ID}")
)
@blueprint.doc(operationId="trainTokenizer")
@blueprint.leads_to("getTokenizer", tokenizer_id="$response.body#/tokenizer_id")
@blueprint.fails_with(
    "CORPUS_NOT_FOUND", "CONFLICT", "CORPUS_EMPTY", "CORPUS_NOT_TEXT", "UNAVAILABLE"
)
def train_tokenizer(spec: TokenizerSpec) -> tuple[dict[str, str | None], dict[str, str]]:
    """Start the training of a tokenizer."""
    require_services()
    key = idempotency_key(spec.to_json())
    tokenizer_id = idempotency.find(current.database(), key)
    if tokenizer_id is None:
        corpus = chosen_corpus(spec.corpus_file_id, spec.corpus_path)
        if corpus is not None:
            check_tokenizer_size(spec, corpus.size)
        tokenizer = tokenizers.create(
            current.database(),
            replace(spec, corpus_sha256=sha256_of(corpus)),
            queue=light_queue(current.settings()),
            request_id=request_id.current(),
            remote_corpora=current.settings().data_bank.url is not None,
            idempotency=key,
        )
        tokenizer_id = tokenizer.tokenizer_id
        wake(tokenizer.job_id)
    accepted = {
        "tokenizer_id": tokenizer_id,
        "artifact_path": _artifact_path(tokenizer_id),
        "coverage": None,
        "oov_rate": None,
    }
    return accepted, {"Location": f"/tokenizers/{tokenizer_id}"}


@blueprint.route("/tokenizers")
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, TokenizerPageSchema)
@blueprint.doc(operationId="listTokenizers")
@blueprint.fails_with("UNAVAILABLE")
def list_tokenizers(query: PageQuery) -> dict[str, object]:
    """List tokenizers, newest first."""
    page = tokenizers.list_(current.database(), **query)
    return {
        "items": [_shown(tokenizer) for tokenizer in page.items],
        "has_more": page.has_more,
        "next": page.next,
    }


@blueprint.route("/tokenizers/<first_id:tokenizer_id>")
@blueprint.response(200, TokenizerSchema)
@blueprint.doc(operationId="getTokenizer")
@blueprint.fails_with("TOKENIZER_NOT_FOUND", "UNAVAILABLE")
def get_tokenizer(tokenizer_id: str) -> dict[str, object]:
    """Tell where a tokenizer stands."""
    return _shown(tokenizers.get(current.database(), tokenizer_id))


def _shown(tokenizer: Tokenizer) -> dict[str, object]:
    error = None
    if tokenizer.status is Status.FAILED:
        error = f"{tokenizer.error_code}: {tokenizer.message}"
    elif tokenizer.damage is not None:
        error = f"{RowDamaged.code}: {tokenizer.damage}"
    return {
        **asdict(tokenizer),
        "artifact_path": _artifact_path(tokenizer.tokenizer_id),
        "error": error,
    }


def _artifact_path(tokenizer_id: str) -> str:
    return str(tokenizer_directory(current.settings(), tokenizer_id))
