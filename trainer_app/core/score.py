"""How well a model predicts a text, token by token: of any length, in bounded memory.

Shapes in names: B windows, T tokens of a window, R rows of logits, D width, V vocabulary,
K candidates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_app.core.device import out_of_memory_named
from trainer_app.core.perplexity import perplexity
from trainer_app.core.score_spec import MAX_CANDIDATES, MAX_DETAILED_TOKENS, ScoreSpec
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.errors import FieldError, LossNotFinite

if TYPE_CHECKING:
    from trainer_app.core.loaded import LoadedModel

TOKENS_AT_ONCE: Final = 2_048  # read by one forward pass, between two looks for a stop
LOGITS_AT_ONCE: Final = 1 << 22  # 16 MiB of float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the likeliest tokens at a place."""

    token: str
    token_id: int
    probability: float
    bits: float  # its surprisal


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of it. ``surprisal[i]`` and ``topk[i]`` are about ``tokens[i + 1]``."""

    loss: float  # mean nats per predicted token: all but the first
    perplexity: float  # its exponential
    surprisal: list[float] | None  # bits of each predicted token
    topk: list[list[Candidate]] | None  # likeliest first
    tokens: list[str] | None  # all of them, as a person would read them

    def to_json(self) -> str:
        """The JSON object that clients see."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)


def score(loaded: LoadedModel, spec: ScoreSpec, *, should_stop: ShouldStop) -> Score:
    """Score ``spec.text`` by its own tokens: no special token is put before it.

    Raises FieldError for a text of fewer than two tokens, or of too many to tell each; also
    LossNotFinite, OutOfMemory and StopRequested.
    """
    ids = loaded.tokenizer.encode(spec.text)
    _check(len(ids), spec)
    nats: list[float] = []
    topk: list[list[Candidate]] = []
    with loaded.in_use(), out_of_memory_named("scoring a window of the text", loaded.device):
        for logits_RV, targets_R in _predictions(loaded, ids, should_stop):
            losses_R = F.cross_entropy(logits_RV, targets_R, reduction="none")
            nats.extend(losses_R.tolist())
            if spec.top_k is not None:
                topk.extend(_likeliest(loaded, logits_RV, spec.top_k))
    loss = math.fsum(nats) / len(nats)
    if not math.isfinite(loss):
        raise LossNotFinite("the loss on the text is not finite: the model's weights are not")
    detailed = spec.detail_level == "per_char"
    return Score(
        loss=loss,
        perplexity=perplexity(loss),
        surprisal=[value / math.log(2) for value in nats] if detailed else None,
        topk=None if spec.top_k is None else topk,
        tokens=[loaded.tokenizer.token_text(token_id) for token_id in ids] if detailed else None,
    )


def windows(tokens: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(first token read, first and last token predicted) of each window, 0-based.

    A window reads ``size`` tokens and predicts the one after each. The windows overlap by half:
    every token but the first is predicted once, and sees at least half a window before it unless
    the text begins there.
    """
    start, predicted = 0, 1
    while predicted < tokens:
        last = min(start + size, tokens - 1)
        yield start, predicted, last
        start, predicted = start + max(size // 2, 1), last + 1


def _check(tokens: int, spec: ScoreSpec) -> None:
    if tokens < 2:
        reason = f"given, or read from path, has {tokens} tokens; a score needs at least 2"
        raise FieldError("text", reason)
    if spec.detail_level == "per_char" and tokens > MAX_DETAILED_TOKENS:
        reason = f"per_char tells at most {MAX_DETAILED_TOKENS} tokens, and the text has {tokens}"
        raise FieldError("detail_level", reason)
    candidates = (spec.top_k or 0) * (tokens - 1)
    if candidates > MAX_CANDIDATES:
        reason = (
            f"{spec.top_k} for each of {tokens - 1} tokens are {candidates} candidates, "
            f"and {MAX_CANDIDATES} is the most"
        )
        raise FieldError("top_k", reason)


def _predictions(
    loaded: LoadedModel, ids: Sequence[int], should_stop: ShouldStop
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (R, V) in float32 and targets (R,) of all tokens but the first, in order.

    A recurrent model reads windows too: it was trained on them, and they bound the memory.
    """
    model = loaded.model
    head_VD = model.head_weight()
    rows = max(LOGITS_AT_ONCE // len(head_VD), 1)
    for batch in _batches(len(ids), model.config.max_seq_len):
        raise_if_stopped(should_stop)
        window_BT = torch.tensor(
            [ids[start : last + 1] for start, _, last in batch], device=loaded.device
        )
        hidden_BTD = model.hidden(window_BT[:, :-1])
        for (start, first, last), window_T, hidden_TD in zip(
            batch, window_BT, hidden_BTD, strict=True
        ):
            for row in range(first - start, last - start + 1, rows):
                targets_R = window_T[row : row + rows]
                hidden_RD = hidden_TD[row - 1 : row - 1 + len(targets_R)]
                yield F.linear(hidden_RD, head_VD).float(), targets_R


def _batches(tokens: int, size: int) -> Iterator[list[tuple[int, int, int]]]:
    """The windows in order, as many at once as TOKENS_AT_ONCE allows; those of a batch are equal
    in length: all but the last are.
    """
    most = max(TOKENS_AT_ONCE // size, 1)
    batch: list[tuple[int, int, int]] = []
    for start, first, last in windows(tokens, size):
        if batch and (len(batch) == most or last - start < size):
            yield batch
            batch = []
        batch.append((start, first, last))
    yield batch


def _likeliest(loaded: LoadedModel, logits_RV: Tensor, k: int) -> Iterator[list[Candidate]]:
    nats_RV = -logits_RV.log_softmax(dim=-1)
    nats_RK, ids_RK = nats_RV.topk(min(k, nats_RV.shape[1]), largest=False)
    for nats_K, ids_K in zip(nats_RK.tolist(), ids_RK.tolist(), strict=True):
        yield [
            Candidate(
                token=loaded.tokenizer.token_text(token_id),
                token_id=token_id,
                probability=math.exp(-nats),
                bits=nats / math.log(2),
            )
            for nats, token_id in zip(nats_K, ids_K, strict=True)
        ]
