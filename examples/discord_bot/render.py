"""A card as the text of a message."""

from __future__ import annotations

import re
from typing import Final

from examples.discord_bot.board import Card, State

_CELLS: Final = 20  # of the progress bar
# Characters: what others wrote, escaped at up to three for one, fits the 2,000 of a message.
_NAME: Final = 60
_SENTENCE: Final = 180
_SAYS: Final = {
    State.RUNNING: "trains",
    State.FINISHED: "has finished",
    State.FAILED: "has failed",
    State.CANCELLED: "was cancelled",
}


def render(card: Card) -> str:
    """The message of a run: a title, a bar, and a line for each kind of figure that is known."""
    model = escaped(card.model or "Run", _NAME)
    lines = [
        f"**{model}** {escaped(card.job_id, _NAME)} {_SAYS[card.state]}",
        _progress(card),
        _figures("loss", card.loss, card.perplexity, _speed(card)),
        _figures("validation loss", card.val_loss, card.val_ppl, f" at step {card.val_step}"),
        _figures("test loss", card.test_loss, card.test_ppl, ""),
        _artifact(card),
        f"because: {escaped(card.reason, _SENTENCE)}" if card.state is State.FAILED else "",
    ]
    return "\n".join(line for line in lines if line)


def escaped(text: str, longest: int) -> str:
    """Text of others as it is: one line, no markdown, no mention, no link, and not too long."""
    line = " ".join(text.split())
    if len(line) > longest:
        line = f"{line[: longest - 1]}…"
    # Discord takes a backslash before anything but letters, digits and spaces.
    line = re.sub(r"([^\w\s]|_)", r"\\\1", line)
    return line.replace("@", "@\u200b")  # nor does the text itself hold a mention


def _progress(card: Card) -> str:
    done = card.percent * _CELLS // 100
    words = f"`{'█' * done}{'░' * (_CELLS - done)}` {card.percent} %"
    if card.epoch is not None:
        words += f", epoch {card.epoch + 1} of {card.total_epochs}"
    if card.state is State.RUNNING and card.doing:
        words += f", {escaped(card.doing, _NAME)}"
    return words


def _figures(name: str, loss: float | None, perplexity: float | None, more: str) -> str:
    if loss is None or perplexity is None:
        return ""
    return f"{name} {loss:.5g}, perplexity {perplexity:.4g}{more}"


def _speed(card: Card) -> str:
    if card.state is not State.RUNNING or card.samples_per_sec is None:
        return ""
    return f", {card.samples_per_sec:.4g} samples/s"


def _artifact(card: Card) -> str:
    if not card.artifact_path:
        return ""
    size = "" if card.artifact_bytes is None else f", {card.artifact_bytes / 1e6:.1f} MB"
    return f"artifact {escaped(card.artifact_path, _SENTENCE)}{size}"
