"""A data bank of each test's own, and time that passes when told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databank_server import DataBankServer, running_data_bank
from trainer_app import settings
from trainer_app.databank.client import DataBank
from trainer_app.databank.retry import Patience
from trainer_app.databank.wire import Timeouts

KEY = "bank-secret"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def server() -> Iterator[DataBankServer]:
    with running_data_bank() as running:
        yield running


@pytest.fixture
def bank_settings(server: DataBankServer) -> settings.DataBank:
    return settings.DataBank(
        url=f"{server.url}/bank", api_key=KEY, max_bytes=10_000_000, retry_seconds=60.0
    )


@pytest.fixture
def bank(bank_settings: settings.DataBank) -> Iterator[DataBank]:
    """A client without much patience for a peer that is silent."""
    timeouts = Timeouts(connect=1.0, answer=0.5, silence=0.5, window=0.3, slowest=1_024.0)
    with DataBank(bank_settings, request_id="req-1", timeouts=timeouts) as client:
        yield client


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def patience(time: Time) -> Patience:
    """A minute that passes at once."""
    return Patience(seconds=60.0, clock=time.clock, sleep=time.sleep, jitter=lambda _, high: high)
