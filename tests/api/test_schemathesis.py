"""The API against what its own document promises, with generated requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import hypothesis
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.openapi import from_wsgi
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance

from trainer_app.settings import Settings
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World


@pytest.fixture
def document(
    world: World, settings: Settings, make_client: Callable[[Settings], FlaskClient]
) -> BaseSchema:
    """The document of an application that has something of everything."""
    world.worker()
    world.corpus()
    world.tokenizer()
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    world.log(run_id, b'{"event": "one"}\n')
    return from_wsgi("/openapi.json", make_client(settings).application)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_a_documented_one(
    document: BaseSchema, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    for result in document.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        can_be_wrong = operation.body or operation.query or operation.headers
        if mode is GenerationMode.NEGATIVE and not can_be_wrong:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def answer_as_documented(case: Case) -> None:  # type: ignore[type-arg]
            # A schema cannot say that two fields must agree, nor that what an id names exists.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        with subtests.test(operation.label):
            answer_as_documented()
