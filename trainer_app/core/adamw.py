"""AdamW on a GPU with the clipping before it, in three launches for all parameters.

torch's own takes two or more for each group of parameters after some ten of the clipping, and each
of its programs 65,536 numbers: for a model of half a million that is a sixth of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, overload

import torch
from torch import Tensor

from trainer_app.core.stopping import StopRequested
from trainer_app.errors import first_line

WIDE: Final = 16  # bytes that the kernels read at once where all tensors begin on such a border
NARROW: Final = 4  # where one does not: cuDNN's layers keep their weights in one piece

Group = dict[str, object]


class ClippedAdamW(torch.optim.AdamW):  # pragma: needs cuda
    """torch's AdamW, in state and in what it computes, on gradients clipped to ``max_norm``.

    All parameters are contiguous, float32 and on one GPU, and all have gradients at each step.
    """

    def __init__(
        self, groups: Sequence[Group], *, lr: Tensor, betas: tuple[float, float], max_norm: float
    ) -> None:
        super().__init__(list(groups), lr=lr, betas=betas, fused=True, capturable=True)
        self._max_norm = max_norm
        self._parameters: list[Tensor] = [p for g in self.param_groups for p in g["params"]]
        aligned = all(parameter.data_ptr() % WIDE == 0 for parameter in self._parameters)
        self._border = WIDE if aligned else NARROW
        sizes = [parameter.numel() for parameter in self._parameters]
        self._chunks = _chunks(sizes).to(lr.device)
        self._sums = torch.empty(len(self._chunks), device=lr.device)
        self._scalars = torch.zeros(4, device=lr.device)
        self._never = torch.zeros((), device=lr.device)
        decays = [g["weight_decay"] for g in self.param_groups for _ in g["params"]]
        self._decays = torch.tensor(decays, device=lr.device)
        self._table = torch.zeros(len(sizes), 5, dtype=torch.int64, device=lr.device)
        self._in_table: list[list[int]] = []
        self._recorded: list[list[int]] | None = None
        self._taken: Tensor | None = None  # of all parameters, which take each step together
        self.norm = self._scalars[0]  # of all gradients of the last step, before clipping

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self._taken = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; ``closure`` gives the loss before it, and gradients."""
        from trainer_app.core.kernels import clipped_adamw_  # noqa: PLC0415 - needs Triton

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        step = self._ready()
        gradients = [_readable(parameter.grad, self._border) for parameter in self._parameters]
        self._address(gradients)
        group = self.param_groups[0]
        undone: Tensor | None = getattr(self, "found_inf", None)  # fp16 overflowed: GradScaler's
        clipped_adamw_(
            table=self._table,
            chunks=self._chunks,
            decays=self._decays,
            sums=self._sums,
            scalars=self._scalars,
            step=step,
            rate=group["lr"],
            undone=self._never if undone is None else undone,
            max_norm=self._max_norm,
            betas=group["betas"],
            eps=group["eps"],
            border=self._border,
        )
        return loss

    def recorded(self) -> None:
        """A step was recorded, in which nothing can be copied from the CPU: do it now."""
        if self._recorded is not None:
            self._write(self._recorded)
            self._recorded = None

    def _ready(self) -> Tensor:
        """The number of steps taken, the same tensor for all parameters; their means are there."""
        if self._taken is None:
            first = self.state[self._parameters[0]].get("step")
            self._taken = torch.zeros_like(self._never) if first is None else first
            for parameter in self._parameters:
                state = self.state[parameter]
                state["step"] = self._taken
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter)
        return self._taken

    def _address(self, gradients: Sequence[Tensor]) -> None:
        """Let the table say where everything is."""
        rows = [
            [
                *(t.data_ptr() for t in (parameter, gradient, *self._means(parameter))),
                parameter.numel(),
            ]
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
        if torch.cuda.is_current_stream_capturing():
            self._recorded = rows
        elif rows != self._in_table:
            self._write(rows)

    def _means(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state[parameter]
        return state["exp_avg"], state["exp_avg_sq"]

    def _write(self, rows: list[list[int]]) -> None:
        # Pinned: the CPU does not wait for the GPU, which may be steps behind.
        self._table.copy_(torch.tensor(rows).pin_memory(), non_blocking=True)
        self._in_table = rows


@cache
def why_not() -> str | None:  # pragma: needs cuda
    """Why these kernels cannot be used on this GPU; None: they can. One step tells."""
    try:
        tried = torch.zeros(1, device="cuda", requires_grad=True)
        tried.grad = torch.zeros_like(tried)
        rate = torch.zeros((), device="cuda")
        group: Group = {"params": [tried], "weight_decay": 0.0}
        ClippedAdamW([group], lr=rate, betas=(0.9, 0.99), max_norm=1.0).step()
    except (torch.OutOfMemoryError, StopRequested):
        raise  # by what else is there, and an interruption: not the kernels' doing
    except Exception as error:
        return first_line(error)
    return None


def _chunks(sizes: Sequence[int]) -> Tensor:  # pragma: needs cuda
    """Which tensor each program changes, and from which of its numbers on: (programs, 2)."""
    from trainer_app.core.kernels import CHUNK  # noqa: PLC0415 - needs Triton

    rows = []
    for index, size in enumerate(sizes):
        starts = torch.arange(0, size, CHUNK)
        rows.append(torch.stack((torch.full_like(starts, index), starts), dim=1))
    return torch.cat(rows)


def _readable(gradient: Tensor | None, border: int) -> Tensor:  # pragma: needs cuda
    assert gradient is not None
    if gradient.is_contiguous() and gradient.data_ptr() % border == 0:
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)
