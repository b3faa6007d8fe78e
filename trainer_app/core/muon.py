"""Muon for the matrices of hidden layers beside AdamW for the rest, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backends.contracts import CausalModel

MOMENTUM: Final = 0.95  # Nesterov's
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
ROUNDS: Final = 5
SMALLEST_NORM: Final = 1e-7


def hidden_matrices(model: nn.Module, *, frozen: bool = False) -> list[nn.Parameter]:
    """The trainable matrices between embeddings and head, whose updates Muon orthogonalizes;
    ``frozen``: those that are not trained, too.

    Embeddings and head are no maps between hidden states: they stay with AdamW (Jordan et al.
    2024, "Muon: An optimizer for hidden layers in neural networks").
    """
    outer = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if isinstance(model, CausalModel):
        outer.add(id(model.head_weight()))
    return [
        parameter
        for parameter in model.parameters()
        if (parameter.requires_grad or frozen)
        and parameter.dim() == 2
        and id(parameter) not in outer
    ]


class Muon(Optimizer):
    """Muon as torch has it, for all matrices of one shape at once.

    torch's own takes matrix by matrix, and its learning rate from the CPU: a recorded step can do
    neither. Updates have the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM
    training"). A parameter that is several matrices, one above the other, is taken for them.
    N matrices of R rows and C columns.
    """

    found_inf: Tensor | None = None  # 1.0 where fp16 overflowed: then nothing is to change

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        lr: float | Tensor,
        weight_decay: float,
        packed_rows: Mapping[nn.Parameter, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        """``packed_rows``: of the parameters that are several matrices, the rows of each."""
        self._packed_rows = packed_rows
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; ``closure`` gives the loss before it, and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            self._step(trained, group["lr"], group["weight_decay"])
        return loss

    def _step(
        self, parameters: list[nn.Parameter], lr: float | Tensor, weight_decay: float
    ) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}  # views, by their shape
        share: float | Tensor = 1 - MOMENTUM
        if self.found_inf is not None:  # without asking the CPU, which a recorded step cannot
            lr, share = lr * (1 - self.found_inf), share * (1 - self.found_inf)
        for parameter in parameters:
            assert parameter.grad is not None
            mean = self._mean(parameter).lerp_(self._finite(parameter.grad), share)
            parameter.mul_(1 - lr * weight_decay)
            rows = self._packed_rows.get(parameter, (len(parameter),))
            for parts in zip(
                parameter.split_with_sizes(rows),
                parameter.grad.split_with_sizes(rows),
                mean.split_with_sizes(rows),
                strict=True,
            ):
                alike.setdefault(parts[0].shape, []).append(parts)
        for group in alike.values():
            self._step_alike(group, lr)

    def _step_alike(
        self, alike: Sequence[tuple[Tensor, Tensor, Tensor]], lr: float | Tensor
    ) -> None:
        """Matrices of one shape, each with its gradient and the mean of those, by now in it.

        Their updates go before those of the next shape are made: a step that is recorded keeps
        what it takes at its peak for the whole run.
        """
        updates_NRC = orthogonalized(
            torch.stack([self._finite(grad).lerp(mean, MOMENTUM) for _, grad, mean in alike])
        ).float()
        updates_NRC *= lr * 0.2 * math.sqrt(max(updates_NRC.shape[1:]))
        for (matrix, _, _), update_RC in zip(alike, updates_NRC, strict=True):
            matrix.sub_(update_RC)

    def _finite(self, grad: Tensor) -> Tensor:
        """The gradient; zeros where it overflowed."""
        return grad if self.found_inf is None else torch.where(self.found_inf > 0, 0.0, grad)

    def _mean(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean: Tensor = state["momentum_buffer"]
        return mean


def orthogonalized(updates_NRC: Tensor) -> Tensor:
    """The nearest matrices with singular values around 1, in bfloat16, by Newton and Schulz.

    Five rounds with the coefficients of Jordan et al. 2024, which leave values between about 0.7
    and 1.2: that is near enough.
    """
    tall = updates_NRC.shape[1] > updates_NRC.shape[2]
    x_NRC = (updates_NRC.mT if tall else updates_NRC).bfloat16()
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC


class Combined(Optimizer):
    """Several optimizers, each with parameters of its own, that step and are kept as one.

    Each of them can leave a step undone where ``found_inf`` is 1, as torch's GradScaler asks.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None  # None, too, where clipping has taken it off the gradients

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        self._step_supports_amp_scaling = True  # GradScaler: leaves it to ``step`` what to skip
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
        assert self.grad_scale is None
        for part in self._parts:
            setattr(part, "found_inf", self.found_inf)  # noqa: B010 - read by name, as GradScaler's
            part.step()
        return loss
