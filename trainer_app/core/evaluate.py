"""The loss on a split: a mean over its tokens, whatever the batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer_app.core.perplexity import perplexity
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.errors import LossNotFinite

if TYPE_CHECKING:
    from torch import nn

    from trainer_app.core.streams import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How well a model predicts a text."""

    loss: float  # mean nats per predicted token
    perplexity: float  # its exponential
    bits_per_byte: float  # comparable across tokenizers
    tokens: int  # predicted


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Bits per byte of UTF-8 text: comparable across tokenizers, unlike loss per token.

    Of a split the nats are also those of the [EOS] behind each run of neighbouring texts, which has
    no bytes: it says where the text goes on elsewhere, whatever the tokenizer.
    """
    return total_nats / (math.log(2) * total_bytes)


def evaluate(
    model: nn.Module,
    stream: TokenStream,
    *,
    seq_len: int,
    batch_size: int,
    device: str,
    should_stop: ShouldStop,
) -> Evaluation:
    """Evaluate a LanguageModelLoss on all of a stream, in windows of ``seq_len`` tokens.

    Every token but the first is predicted once; the last window may be shorter. Draws no random
    number and leaves the model in the mode in which it was. Raises StopRequested, LossNotFinite
    and, where the stream was changed meanwhile, IdsChanged.
    """
    was_training = model.training
    model.eval()
    tokens = len(stream) - 1
    try:
        with torch.inference_mode():
            # on the device, and read once: a GPU would else have nothing to do between two batches
            total = torch.zeros((), dtype=torch.float64, device=device)
            for first, rows, columns in _batches_of(tokens, seq_len, batch_size):
                raise_if_stopped(should_stop)
                places = first + np.arange(rows)[:, None] * seq_len + np.arange(columns + 1)
                ids = torch.from_numpy(stream.ids[places].astype(np.int64))
                window = ids.to(device, non_blocking=True)  # of memory that is copied aside first
                loss = model(window[:, :-1], window[:, 1:])
                total += loss.double() * rows * columns
            total_nats = total.item()
        stream.check()
    finally:
        model.train(was_training)
    loss = total_nats / tokens
    if not math.isfinite(loss):
        raise LossNotFinite("the loss on held-out text is not finite: the model's weights are not")
    return Evaluation(
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=bits_per_byte(total_nats, stream.bytes),
        tokens=tokens,
    )


def _batches_of(tokens: int, seq_len: int, batch_size: int) -> list[tuple[int, int, int]]:
    """(first token, rows, columns) of each batch: full windows, then what is left."""
    windows, left = divmod(tokens, seq_len)
    full = [
        (start * seq_len, min(batch_size, windows - start), seq_len)
        for start in range(0, windows, batch_size)
    ]
    return [*full, (windows * seq_len, 1, left)] if left else full
