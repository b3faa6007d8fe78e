"""What all requests to a finished run share: how they are queued, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from marshmallow import Schema

from trainer_app.api import current, request_id
from trainer_app.api.accept import idempotency_key, require_services, wake
from trainer_app.api.finished_model import damage_of
from trainer_app.core.json_spec import RESULT_LOST, JsonSpec, json_object
from trainer_app.errors import ModelIncompatible, NotReady, RowDamaged
from trainer_app.queue import queue_of
from trainer_app.restore import unfinished
from trainer_app.store import idempotency, requests, runs
from trainer_app.store.requests import Request
from trainer_app.store.runs import Run
from trainer_app.store.tables import JobKind, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What is to be queued."""

    spec: JsonSpec
    topic: str | None = None
    characters: int = 0  # of the text that it reads, where that can be long


def ask(
    kind: JobKind,
    run_id: str,
    body: str,
    resolve: Callable[[Run], Resolved],
    *,
    reads_corpus: bool = False,
) -> Request:
    """Queue a request to a run; with a key that was used before, the request of then.

    It is answered as it was queued, however far it has got: a repeat gets the first answer, byte
    for byte, and what came of the request is at its own address.

    ``body`` is what the client sent, for its key; ``resolve`` makes of it what a worker is told,
    once the run is known to have a model; ``reads_corpus``: that the run was trained on, which is
    kept for it where it is still there. Raises RunNotFound, NotReady, RowDamaged for a run whose
    spec cannot be read, by which its worker checks the model, ModelIncompatible for a damaged
    model, Unavailable, InvalidInput for a bad key, and what ``resolve`` raises.
    """
    require_services()
    database = current.database()
    key = idempotency_key(body)
    run = runs.get(database, run_id)
    earlier = idempotency.find(database, key)
    if earlier is not None:
        return _as_queued(requests.get(database, kind, run_id, earlier))
    _require_model(run)
    trained, resolved = run.spec, resolve(run)
    created = requests.create(
        database,
        kind,
        run_id,
        resolved.spec.to_json(),
        queue=queue_of(current.settings(), kind, characters=resolved.characters),
        user_id=run.user_id,
        topic=resolved.topic,
        corpus_file_id=trained.corpus_file_id if reads_corpus else None,
        http_request_id=request_id.current(),
        idempotency=key,
    )
    wake(created.request_id)
    # A worker, or a repeat at the same moment, may have been faster than this answer.
    return _as_queued(created)


def find(kind: JobKind, run_id: str, request_id: str) -> Request:
    """A request to a run; raises RunNotFound and DataNotFound."""
    runs.get(current.database(), run_id)
    return requests.get(current.database(), kind, run_id, request_id)


def shown(found: Request, schema: type[Schema], *results: str) -> dict[str, object]:
    """A request as clients see it; ``results`` are null until it is completed.

    ``schema`` is that of the answer, which has them.
    """
    result = {} if found.result is None else _readable(found.result, schema, results)
    error = None
    if found.status is Status.FAILED:
        error = f"{found.error_code}: {found.message}"
    elif result is None:
        error = f"{RowDamaged.code}: {RESULT_LOST}"
    return {
        "request_id": found.request_id,
        "status": found.status,
        **{name: (result or {}).get(name) for name in results},
        "error": error,
    }


def _readable(text: str, schema: type[Schema], results: Sequence[str]) -> dict[str, object] | None:
    """What came of a request; None where somebody has put there what no answer can hold."""
    result = json_object(text)
    if result is None:
        return None
    try:
        json.dumps(schema(only=results).dump(result), ensure_ascii=False).encode()
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
        return None
    return result


def _as_queued(found: Request) -> Request:
    return replace(found, status=Status.QUEUED, result=None, error_code=None, message="")


def _require_model(run: Run) -> None:
    if run.status is not Status.COMPLETED:
        raise NotReady(unfinished(run.run_id, run.status))
    damaged = damage_of(run)
    if damaged is not None:
        raise ModelIncompatible(damaged)
