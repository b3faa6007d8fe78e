"""Continue a text, for ever if need be: past the model's context the window slides.

Shapes in names: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor

from backends.contracts import EOS_ID, SPECIAL_TOKENS, CausalModel, Tokenizer
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import LoadedModel
from trainer_app.core.sampling import NONE, Sampler
from trainer_app.errors import LossNotFinite

READ_AT_ONCE: Final = 2048  # tokens of a prompt: bounds the memory that reading it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What came of it, in the order of the sequences."""

    outputs: list[str]  # without the prompt
    steps: int  # new tokens of all sequences together, an end-of-text token included
    eos_terminated: list[bool]  # the model itself ended the text

    def to_json(self) -> str:
        """The JSON object that clients see."""
        return json.dumps(asdict(self), sort_keys=True)


def generate(
    loaded: LoadedModel, spec: GenerateSpec, *, should_stop: Callable[[], bool]
) -> Generation:
    """Continue ``spec.prompt_text``.

    An empty prompt starts from [EOS], which is what stands before each text in training. Of a
    prompt longer than the context the last tokens count. ``should_stop`` is asked before each
    token, and between the parts of READ_AT_ONCE tokens that a long prompt is read in; what there
    is by then is returned. Raises LossNotFinite for weights that give no finite logits.
    """
    with loaded.in_use():
        return _generate(loaded, spec, should_stop)


def _generate(
    loaded: LoadedModel, spec: GenerateSpec, should_stop: Callable[[], bool]
) -> Generation:
    sampler = Sampler(spec, loaded.device)
    prompt = loaded.tokenizer.encode(spec.prompt_text) or [EOS_ID]
    reader = _Reader(loaded, prompt, spec, should_stop)
    sequences = [_Sequence(spec, loaded.tokenizer) for _ in range(spec.num_return_sequences)]
    growing = sequences
    logits_BV = reader.read_prompt(len(sequences))
    while logits_BV is not None and not should_stop():
        ids_B = sampler.choose(logits_BV)
        ids: list[int] = ids_B.tolist()
        if NONE in ids:
            raise LossNotFinite("the model gives no finite logits: its weights are not finite")
        for sequence, token_id in zip(growing, ids, strict=True):
            sequence.append(token_id)
        rows = [row for row, sequence in enumerate(growing) if not sequence.finished]
        if not rows:
            break
        if len(rows) < len(growing):
            growing = [growing[row] for row in rows]
            ids_B = reader.keep(rows, ids_B)
            sampler.keep(rows)
        logits_BV = reader.read(ids_B)
    return Generation(
        outputs=[sequence.text() for sequence in sequences],
        steps=sum(sequence.steps for sequence in sequences),
        eos_terminated=[sequence.ended for sequence in sequences],
    )


class _Reader:
    """Feeds tokens to the model and slides its window when the context is full."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: list[int],
        spec: GenerateSpec,
        should_stop: Callable[[], bool],
    ) -> None:
        self._should_stop = should_stop
        self._model: CausalModel = loaded.model
        self._context = loaded.context
        window = prompt if self._context is None else prompt[-self._context :]
        self._capacity = len(window) + spec.max_new_tokens
        if self._context is not None:
            self._capacity = min(self._capacity, self._context)
        # all that a full window may be rebuilt from
        self._history_BT = torch.tensor([window], device=loaded.device)
        self._cache = self._model.new_cache(1, self._capacity)

    def read_prompt(self, sequences: int) -> Tensor | None:
        """Read the prompt once, for all sequences.

        Returns the logits after it (B, V), or None when it was to stop before.
        """
        logits_1V = self._read_all(self._history_BT)
        if logits_1V is None:
            return None
        rows_B = torch.zeros(sequences, dtype=torch.long, device=logits_1V.device)
        self._history_BT = self._history_BT[rows_B]
        self._cache.reorder(rows_B)
        return logits_1V[rows_B]

    def read(self, ids_B: Tensor) -> Tensor | None:
        """Read one more token of each sequence.

        Returns the logits after it (B, V), or None when it was to stop before.
        """
        ids_B1 = ids_B[:, None]
        if self._context is None:
            return self._model.decode(ids_B1, self._cache)
        self._history_BT = torch.cat((self._history_BT, ids_B1), dim=1)
        if self._cache.length < self._context:
            return self._model.decode(ids_B1, self._cache)
        # Positions are absolute: the latest half is read again from position 0, once for each
        # half context of new tokens.
        self._history_BT = self._history_BT[:, -max(self._context // 2, 1) :]
        self._cache = self._model.new_cache(len(ids_B), self._context)
        return self._read_all(self._history_BT)

    def keep(self, rows: Sequence[int], ids_B: Tensor) -> Tensor:
        """Go on with some of the sequences; returns their part of ``ids_B``."""
        rows_B = torch.tensor(rows, device=ids_B.device)
        self._history_BT = self._history_BT[rows_B]
        self._cache.reorder(rows_B)
        return ids_B[rows_B]

    def _read_all(self, ids_BT: Tensor) -> Tensor | None:
        parts = torch.split(ids_BT, READ_AT_ONCE, dim=1)
        for part_BT in parts[:-1]:
            self._model.decode(part_BT, self._cache)
            if self._should_stop():
                return None
        return self._model.decode(parts[-1], self._cache)


class _Sequence:
    """The new tokens of one sequence, and whether it has come to its end."""

    def __init__(self, spec: GenerateSpec, tokenizer: Tokenizer) -> None:
        self.steps = 0
        self.ended = False  # by the model's end-of-text token
        self.finished = False
        self._ids: list[int] = []  # without special tokens
        self._spec = spec
        self._tokenizer = tokenizer
        # A token holds a byte or more, a character takes four bytes at most: a stop string that
        # the newest token completes lies in the last so many tokens.
        self._tail = 4 * max(map(len, spec.stop_sequences), default=0)

    def append(self, token_id: int) -> None:
        """Take the next token."""
        self.steps += 1
        self.ended = token_id == EOS_ID and self._spec.stop_on_eos
        self.finished = self.ended or self.steps == self._spec.max_new_tokens
        if token_id < len(SPECIAL_TOKENS):
            return
        self._ids.append(token_id)
        if self._tail:
            tail = self._tokenizer.decode(self._ids[-self._tail :])
            self.finished |= any(stop in tail for stop in self._spec.stop_sequences)

    def text(self) -> str:
        """The text before the first stop string, without an unfinished character at its end."""
        text = self._tokenizer.decode(self._ids)
        if self.ended:
            return text
        found = [text.find(stop) for stop in self._spec.stop_sequences if stop in text]
        return text[: min(found)] if found else text.removesuffix("\N{REPLACEMENT CHARACTER}")
