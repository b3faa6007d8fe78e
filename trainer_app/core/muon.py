"""Muon for the matrices of hidden layers beside AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import nn
from torch.optim import Optimizer

from backends.contracts import CausalModel


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices between embeddings and head, whose updates Muon orthogonalizes.

    Embeddings and head are no maps between hidden states: they stay with AdamW (Jordan et al.
    2024, "Muon: An optimizer for hidden layers in neural networks").
    """
    outer = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if isinstance(model, CausalModel):
        outer.add(id(model.head_weight()))
    return [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.dim() == 2 and id(parameter) not in outer
    ]


class Combined(Optimizer):
    """Several optimizers, each with parameters of its own, that step and are kept as one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let the parts work on this one's groups and state: loading has replaced both."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups = self.param_groups[first:last]
            part.state = self.state
            first = last

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with each part; ``closure`` gives the loss before it, and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
