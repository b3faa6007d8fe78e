"""What an attention model remembers while it generates.

Shapes in names: L layers, B sequences, H heads, T new tokens, S tokens so far, C head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of all layers, in buffers for ``max_len`` tokens that are never copied
    as they fill.
    """

    def __init__(
        self, *, layers: int, batch: int, heads: int, max_len: int, head_width: int, like: Tensor
    ) -> None:
        self.length = 0
        self.max_len = max_len
        shape = (layers, batch, heads, max_len, head_width)
        self._keys_LBHSC = like.new_empty(shape)
        self._values_LBHSC = like.new_empty(shape)

    def extend(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns those of all tokens so far (B, H, S, C).

        ``length`` moves on once for all layers, by ``advance``.
        """
        end = self.length + k_BHTC.shape[2]
        assert end <= self.max_len, "the generator starts a fresh cache before the context is full"
        k_BHSC = self._keys_LBHSC[layer, :, :, :end]
        v_BHSC = self._values_LBHSC[layer, :, :, :end]
        k_BHSC[:, :, self.length :] = k_BHTC
        v_BHSC[:, :, self.length :] = v_BHTC
        return k_BHSC, v_BHSC

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has stored."""
        self.length += tokens

    def reorder(self, rows_B: Tensor) -> None:
        """Keep the given rows, in that order; a row may be repeated."""
        self._keys_LBHSC = self._gathered(self._keys_LBHSC, rows_B)
        self._values_LBHSC = self._gathered(self._values_LBHSC, rows_B)

    def _gathered(self, buffer_LBHSC: Tensor, rows_B: Tensor) -> Tensor:
        layers, _, heads, max_len, width = buffer_LBHSC.shape
        result = buffer_LBHSC.new_empty((layers, len(rows_B), heads, max_len, width))
        result[:, :, :, : self.length] = buffer_LBHSC[:, rows_B, :, : self.length]
        return result


def causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    """Which of ``seen + new`` tokens each of the new ones may look at: (new, seen + new) bools."""
    return torch.ones(new, seen + new, dtype=torch.bool, device=device).tril(diagonal=seen)
