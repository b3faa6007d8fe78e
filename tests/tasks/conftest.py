"""A worker's process as the tests of tasks see it: real database, real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks import process
from tasks.held import draining
from trainer_app.settings import Settings


@pytest.fixture
def worker(settings: Settings) -> Iterator[Settings]:
    """The settings of a worker process that has just begun: nothing is open yet."""
    made = (
        process.settings,
        process.database,
        process.redis_client,
        process.publisher,
        process.queue,
    )
    for make in made:
        make.cache_clear()
    yield settings
    draining.clear()
    process.publisher().close()
    process.queue().close()
    process.redis_client().close()
    process.database().close()
    for make in made:
        make.cache_clear()
