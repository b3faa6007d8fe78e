"""From logits to the next token. Shapes in names: N sequences asked for, B of them left,
V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from backends.contracts import EOS_ID
from trainer_app.core.generation_spec import GenerateSpec

# Below this every other token's probability is 0 in float32, unless it ties with the first.
COLDEST: Final = 1e-5
NONE: Final = -1  # no id; drawn from NaN, a GPU would fail for good


class Sampler:
    """Draws tokens as a spec asks, from a random state of its own.

    The same seed gives the same tokens on the same device, whatever ran before, and each sequence
    its own, whenever the others end.
    """

    def __init__(self, spec: GenerateSpec, device: str) -> None:
        self._spec = spec
        self._random = torch.Generator(device)
        if spec.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(spec.seed)
        self._places_B: Tensor | None = None  # of the sequences left, with a seed; None: all are

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the sequences."""
        if self._spec.seed is None:
            return
        rows_B = torch.tensor(rows, device=self._random.device)
        self._places_B = rows_B if self._places_B is None else self._places_B[rows_B]

    def choose(self, logits_BV: Tensor) -> Tensor:
        """One id for each sequence (B,); changes ``logits_BV``.

        NONE where the largest logit is not finite: whoever reads the ids sees it without a second
        wait for the device.
        """
        # Never [PAD], [UNK] and [BOS], which write nothing: [UNK] stands in texts with characters
        # that the tokenizer does not know, and is learnt there.
        logits_BV[:, :EOS_ID] = -torch.inf
        if self._spec.temperature < COLDEST:
            ids_B1 = logits_BV.argmax(dim=-1, keepdim=True)
            top_B1 = logits_BV.gather(1, ids_B1)
        else:
            logits_BK, ids_BK = self._candidates(logits_BV.float())
            top_B1 = logits_BK.amax(dim=-1, keepdim=True)
            drawn_B1 = self._drawn(self._probabilities(logits_BK, top_B1))
            ids_B1 = drawn_B1 if ids_BK is None else ids_BK.gather(1, drawn_B1)
        return ids_B1.masked_fill(~top_B1.isfinite(), NONE)[:, 0]

    def _candidates(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits to choose from, likeliest first, and their ids; None: all, in their order."""
        size = logits_BV.shape[1]
        if 0 < self._spec.top_k < size:
            logits_BK, ids_BK = logits_BV.topk(self._spec.top_k)
            return logits_BK, ids_BK
        if self._spec.top_p < 1:
            logits_BK, ids_BK = logits_BV.sort(descending=True, stable=True)
            return logits_BK, ids_BK
        return logits_BV, None

    def _probabilities(self, logits_BK: Tensor, top_B1: Tensor) -> Tensor:
        # The largest is made 0 first: a small temperature must not take it to infinity.
        centred_BK = (logits_BK - top_B1).masked_fill_(~top_B1.isfinite(), 0.0)  # not NaN: see NONE
        probabilities_BK = (centred_BK / self._spec.temperature).softmax(dim=-1)
        if self._spec.top_p < 1:
            # Nucleus sampling (Holtzman et al. 2020): a token stays while those before it have
            # not reached top_p; the first always stays.
            before_BK = probabilities_BK.cumsum(dim=-1) - probabilities_BK
            beyond_BK = before_BK >= self._spec.top_p
            beyond_BK[:, 0] = False
            probabilities_BK = probabilities_BK.masked_fill(beyond_BK, 0.0)
        return probabilities_BK

    def _drawn(self, probabilities_BK: Tensor) -> Tensor:
        """One candidate of each sequence (B, 1)."""
        places_B = self._places_B
        if places_B is None:
            return torch.multinomial(probabilities_BK, 1, generator=self._random)
        # Those that have ended draw as well, anything: else the others would draw their numbers.
        sequences = self._spec.num_return_sequences
        all_NK = probabilities_BK.new_ones(sequences, probabilities_BK.shape[1])
        all_NK[places_B] = probabilities_BK
        return torch.multinomial(all_NK, 1, generator=self._random)[places_B]
