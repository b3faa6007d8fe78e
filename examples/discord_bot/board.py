"""What the bot knows of each run, as the events tell it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final

from examples.discord_bot.events import (
    Event,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobStarted,
    MetricsConfig,
    MetricsProgress,
)

_RUN: Final = "run-"  # tokenizers and requests are jobs as well; the board shows runs alone
_KEPT_CARDS: Final = 200  # the oldest that have ended make room


class State(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, kw_only=True)
class Card:
    """One run, and the message that shows it."""

    job_id: str
    state: State = State.RUNNING
    model: str = ""  # family and size
    total_epochs: int | None = None
    percent: int = 0
    doing: str = ""  # what it does now, in the service's words
    epoch: int | None = None  # from 0
    loss: float | None = None
    perplexity: float | None = None
    samples_per_sec: float | None = None
    val_loss: float | None = None
    val_ppl: float | None = None
    val_step: int | None = None
    test_loss: float | None = None
    test_ppl: float | None = None
    artifact_path: str = ""
    artifact_bytes: int | None = None
    reason: str = ""  # of a failure
    message_id: int | None = None
    shown: str = ""  # the text of that message


@dataclass(slots=True, kw_only=True)
class Board:
    """All cards, and the entry of the stream that was read last."""

    last_id: str | None = None
    cards: dict[str, Card] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Take one event in; the same one again changes nothing."""
        if not event.job_id.startswith(_RUN):
            return
        card = self.cards.setdefault(event.job_id, Card(job_id=event.job_id))
        _tell(card, event)
        ended = [name for name, card in self.cards.items() if card.state is not State.RUNNING]
        for name in ended[: max(0, len(self.cards) - _KEPT_CARDS)]:
            del self.cards[name]

    def to_json(self) -> str:
        """What ``from_json`` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Board:
        """The board that ``to_json`` wrote."""
        values = json.loads(text)
        cards = {
            name: Card(**card | {"state": State(card["state"])})
            for name, card in values["cards"].items()
        }
        return cls(last_id=values["last_id"], cards=cards)


def _tell(card: Card, event: Event) -> None:
    match event:
        case JobStarted():
            card.state = State.RUNNING
        case JobProgress():
            card.percent, card.doing = event.progress, event.message
        case JobCompleted():
            card.state, card.percent = State.FINISHED, 100
            card.artifact_bytes = event.result_bytes
        case JobFailed():
            cancelled = event.error_kind == "user" and event.message == "cancelled"
            card.state = State.CANCELLED if cancelled else State.FAILED
            card.reason = event.message
        case MetricsConfig():
            card.model = f"{event.model_family} {event.model_size}"
            card.total_epochs = event.total_epochs
        case MetricsProgress():
            card.epoch, card.total_epochs = event.epoch, event.total_epochs
            card.loss, card.perplexity = event.loss, event.perplexity
            card.samples_per_sec = event.samples_per_sec
            if event.val_loss is not None:
                card.val_loss, card.val_ppl = event.val_loss, event.val_ppl
                card.val_step = event.step
        case _:  # MetricsCompleted: there is no other type
            card.test_loss, card.test_ppl = event.test_loss, event.test_ppl
            card.artifact_path = event.artifact_path
