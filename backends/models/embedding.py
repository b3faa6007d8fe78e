"""A token or position embedding whose weight is drawn or loaded by the model that it is part of."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """One that draws no weight of its own.

    torch's draws one where it is made; of a weight that has no memory yet that goes through Python,
    which imports torch's compiler: a second of CPU time, and 70 MB that no process needs which does
    not train (torch 2.13).
    """

    def reset_parameters(self) -> None:
        """Leave the weight as it is."""
