"""Names of jobs."""

from __future__ import annotations

import time

from trainer_app.store import ids


def test_ids_have_one_form() -> None:
    name = ids.new_id(ids.RUN)
    assert ids.ID_PATTERN.fullmatch(name)
    assert len(name) == len("run-") + 26


def test_ids_are_all_different() -> None:
    assert len({ids.new_id(ids.RUN) for _ in range(10_000)}) == 10_000


def test_ids_sort_by_age() -> None:
    names = []
    for _ in range(20):
        names.append(ids.new_id(ids.RUN))
        time.sleep(0.002)
    assert names == sorted(names)
