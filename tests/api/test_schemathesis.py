"""The API against what its own document promises, with generated requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import hypothesis
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.generation.stateful import APIStateMachine
from schemathesis.openapi import from_wsgi, media_type
from schemathesis.schemas import BaseSchema
from sqlalchemy import delete

from trainer_app.api import gate
from trainer_app.factory import create_app
from trainer_app.settings import Security, Settings
from trainer_app.store.tables import Status, Table

if TYPE_CHECKING:
    from schemathesis.core.jsonschema.types import JsonValue
    from schemathesis.hooks import HookContext
    from schemathesis.specs.openapi.schemas import OpenApiOperation

    from tests.api.conftest import World

# Where a journey begins, with a body that names what there is, which generated ones do not; and
# the paths that it can lead to. A stream is none of them: it ends with its run, which never runs.
JOURNEYS: dict[str, tuple[JsonValue | bytes, str]] = {
    "POST /runs/train": (
        {"corpus_path": "tale.txt", "tokenizer_id": "words", "model_size": "tiny"},
        r"^/runs/(train|{run_id}(/(logs|metrics))?)$",
    ),
    "POST /runs/{run_id}/pause": ({}, r"^/runs/{run_id}(/(pause|resume|cancel))?$"),
    "POST /tokenizers/train": (
        {"method": "bpe", "vocab_size": 300, "corpus_path": "tale.txt"},
        r"^/tokenizers/(train|{tokenizer_id})$",
    ),
    "POST /corpora": (b"Once upon a time\n", r"^/corpora(/{file_id})?$"),
    "POST /runs/{run_id}/evaluate": ({"split": "test"}, r"/eval(uate)?$"),
    "POST /runs/{run_id}/generate": ({"prompt_text": "Once"}, r"/generate(/|$)"),
    "POST /runs/{run_id}/score": ({"text": "Once upon a time"}, r"/score(/|$)"),
    "POST /runs/{run_id}/chat": ({"message": "Once"}, r"/chat(/|$)"),
}
MOVES = ("/pause", "/resume", "/cancel")
# What a media type says and no schema can: an upload is UTF-8, and not of white space alone.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: bool(text.strip())
)
media_type("text/plain", TEXTS.map(str.encode))
media_type("application/octet-stream", TEXTS.map(str.encode))
KEY = "key-of-these-tests"


def furnish(world: World) -> str:
    """A corpus, a tokenizer, and a run with all that a finished run has; its id."""
    world.corpus()
    world.tokenizer()
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    world.log(run_id, b'{"event": "one"}\n')
    return run_id


def clear(world: World) -> None:
    with world.database.write() as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(delete(table))


@pytest.fixture
def document(
    world: World, settings: Settings, make_client: Callable[[Settings], FlaskClient]
) -> BaseSchema:
    """The document of an application that has something of everything."""
    world.worker()
    furnish(world)
    return from_wsgi("/openapi.json", make_client(settings).application)


@pytest.fixture
def guarded_document(world: World, settings: Settings) -> BaseSchema:
    """That of an application which asks for a key."""
    world.worker()
    furnish(world)
    keys = Security(api_keys=(KEY,), allow_open=False)
    return from_wsgi("/openapi.json", create_app(replace(settings, security=keys)))


def make_possible(case: Case[OpenApiOperation], number: int) -> None:
    """Name a queue that there is, and give each request an Idempotency-Key of its own."""
    if isinstance(case.body, dict) and "queue" in case.body:
        case.body["queue"] = "trainer"
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] += str(number)


def with_whole_numbers(_: HookContext, body: JsonValue) -> JsonValue:
    """1.0 as 1: JSON Schema takes both for integers, the contract does not."""
    if isinstance(body, dict):
        return {name: with_whole_numbers(_, value) for name, value in body.items()}
    return int(body) if isinstance(body, float) and body.is_integer() else body


def check_every_operation(
    document: BaseSchema,
    subtests: pytest.Subtests,
    mode: GenerationMode,
    *,
    headers: dict[str, str],
    examples: int,
) -> None:
    document.config.generation.update(allow_x00=False)
    numbers = itertools.count()
    document.hook("map_body")(with_whole_numbers)
    for result in document.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        # X-Request-ID, which all take, is not: the server makes another of what it does not like.
        can_be_wrong = operation.body or operation.query or operation.path_parameters
        if mode is GenerationMode.NEGATIVE and not can_be_wrong:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def answer_as_documented(case: Case[OpenApiOperation]) -> None:
            if mode is GenerationMode.POSITIVE:
                make_possible(case, next(numbers))
            case.call_and_validate(headers=headers)

        with subtests.test(operation.label):
            answer_as_documented()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_a_documented_one(
    document: BaseSchema, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    check_every_operation(document, subtests, mode, headers={}, examples=15)


@pytest.mark.slow
def test_every_answer_of_a_server_with_a_key_is_a_documented_one_and_needs_the_key(
    guarded_document: BaseSchema, subtests: pytest.Subtests
) -> None:
    """Each request that succeeds is sent again without the key, and with another."""
    check_every_operation(
        guarded_document,
        subtests,
        GenerationMode.POSITIVE,
        headers={gate.KEY_HEADER: KEY},
        examples=4,
    )


@pytest.mark.slow
def test_links_lead_from_what_was_made_to_what_can_be_done_with_it(
    document: BaseSchema, world: World, subtests: pytest.Subtests
) -> None:
    """Each journey has a world of its own, so that the same journey ends the same."""
    completed = queued = ""
    reached: set[str] = set()

    def begin(_journey: APIStateMachine) -> None:
        nonlocal completed, queued
        clear(world)
        completed, queued = furnish(world), world.run()

    def make_sense(_journey: APIStateMachine, case: Case[OpenApiOperation]) -> None:
        if case.operation.label in JOURNEYS:
            body, _ = JOURNEYS[case.operation.label]
            case.body = body
            case.media_type = "text/plain" if isinstance(body, bytes) else "application/json"
        if not case.path_parameters.get("run_id", "run-").startswith("run-"):
            case.path_parameters["run_id"] = queued if case.path.endswith(MOVES) else completed

    def note(_: HookContext, case: Case[OpenApiOperation], response: Response) -> None:
        if response.status_code < 300:
            reached.add(case.operation.label)

    for start, (_, paths) in JOURNEYS.items():
        linked = document.include(path_regex=paths)
        linked.hook("after_call")(note)
        linked.config.generation.update(modes=[GenerationMode.POSITIVE])
        machine = linked.as_state_machine()
        journey = type("Journey", (machine,), {"setup": begin, "before_call": make_sense})
        assert issubclass(journey, APIStateMachine)
        reached.clear()
        with subtests.test(start):
            journey.run(
                settings=hypothesis.settings(
                    max_examples=6,
                    stateful_step_count=6,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
            )
            assert {start} < reached
