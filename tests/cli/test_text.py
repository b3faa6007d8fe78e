"""Figures, tables and log lines as people read them."""

from __future__ import annotations

import pytest

from trainer_app.cli.log_lines import readable
from trainer_app.cli.tables import duration, moment, printable, short, size, table


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (750, "12:30"), (11_045, "3:04:05")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_large_numbers_are_short() -> None:
    assert [short(number) for number in (950, 8_400, 1_234_567)] == ["950", "8.4k", "1.2M"]
    assert [size(count) for count in (1_500, 2_500_000)] == ["1.5 kB", "2.5 MB"]


def test_a_table_aligns_numbers_right_and_shows_a_dash_for_nothing() -> None:
    rows = [("a", 1, 0.5), ("longer", 100, None)]
    assert table(("id", "bytes", "loss"), rows).splitlines() == [
        "id      bytes  loss",
        "a           1   0.5",
        "longer    100     -",
    ]
    assert table(("id",), []) == "id"


def test_a_time_that_is_not_known_stays_so() -> None:
    assert moment(None) is None


def test_text_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nü") == "a\\x1b[2Jb\tc\nü"


def test_a_log_line_of_another_form_stays_as_it_is() -> None:
    assert readable("not json") == "not json"
    assert readable('{"event": "no time"}') == '{"event": "no time"}'
    line = '{"ts": "2030-01-02T03:04:05Z", "level": "info", "event": "e", "tags": ["a"], "s": "x"}'
    assert readable(line) == '03:04:05 info    e  tags=["a"] s=x'
