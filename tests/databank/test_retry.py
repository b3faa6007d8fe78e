"""How long a transfer is tried again, and when it is not."""

from __future__ import annotations

import pytest

from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, never
from trainer_app.databank.retry import Patience, Tries, TryAgain


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def patience(clock: Clock, seconds: float = 100.0, *, low: bool = False) -> Patience:
    return Patience(
        seconds=seconds,
        clock=clock,
        sleep=clock.sleep,
        jitter=lambda least, most: least if low else most,
    )


def wait(tries: Tries, clock: Clock, error: TryAgain) -> float:
    before = clock.now
    tries.failed(error)
    return round(clock.now - before, 6)


def test_pauses_double_up_to_a_minute() -> None:
    clock = Clock()
    tries = Tries(patience(clock, 1_000), should_stop=never)

    pauses = [wait(tries, clock, TryAgain("away")) for _ in range(9)]

    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_half_of_a_pause_is_left_to_chance() -> None:
    clock = Clock()

    assert wait(Tries(patience(clock, low=True), should_stop=never), clock, TryAgain("")) == 0.25


def test_patience_ends_with_the_last_error() -> None:
    clock = Clock()
    tries = Tries(patience(clock, 10), should_stop=never)
    for _ in range(4):
        tries.failed(TryAgain("away"))

    with pytest.raises(TryAgain, match="away"):
        tries.failed(TryAgain("away"))

    assert clock.now == 7.5


def test_progress_begins_the_count_anew() -> None:
    clock = Clock()
    tries = Tries(patience(clock, 10), should_stop=never)
    for _ in range(3):
        tries.failed(TryAgain("cut"))
    clock.now = 1_000

    tries.progressed()

    assert wait(tries, clock, TryAgain("cut")) == 0.5


def test_a_server_may_ask_for_more_time_but_not_for_all_of_it() -> None:
    clock = Clock()
    tries = Tries(patience(clock, 1_000), should_stop=never)

    assert wait(tries, clock, TryAgain("busy", pause_seconds=7)) == 7
    assert wait(tries, clock, TryAgain("busy", pause_seconds=86_400)) == 60


def test_the_third_wrong_answer_is_the_last_however_much_came_with_it() -> None:
    clock = Clock()
    tries = Tries(patience(clock), should_stop=never)
    for _ in range(2):
        tries.failed(TryAgain("bad", wrong=True))
        tries.progressed()

    with pytest.raises(TryAgain, match="bad"):
        tries.failed(TryAgain("bad", wrong=True))


def test_a_stop_ends_a_pause() -> None:
    clock = Clock()
    tries = Tries(patience(clock), should_stop=lambda: StopReason.DRAIN if clock.now > 1 else None)

    with pytest.raises(StopRequested):
        tries.failed(TryAgain("busy", pause_seconds=50))

    assert clock.now < 2
