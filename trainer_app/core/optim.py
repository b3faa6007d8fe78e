"""The optimizer and its learning rate, which is a function of the step: no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from backends.contracts import CausalModel
from trainer_app.core.adamw import ClippedAdamW, why_not
from trainer_app.core.muon import Combined, Muon, hidden_matrices
from trainer_app.core.spec import TrainSpec

if TYPE_CHECKING:
    from torch import nn

BETAS: Final = (0.9, 0.95)  # Brown et al.: Language models are few-shot learners (2020), app. B
MOMENTUM: Final = 0.9  # of sgd


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The optimizer of what is trainable: weight decay on matrices, none on biases and norms.

    Decay is decoupled for adamw and muon, and part of the gradient for adam and sgd.
    """
    if spec.optimizer == "muon":
        return _muon_and_adamw(model, spec)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = _groups(trained, spec)
    rate = _rate(model, spec)
    on_gpu = isinstance(rate, torch.Tensor)
    if spec.optimizer == "adamw":
        flat = all(p.is_contiguous() and p.dtype == torch.float32 for p in trained)
        if isinstance(rate, torch.Tensor) and flat and why_not() is None:
            return ClippedAdamW(  # pragma: needs cuda
                groups, lr=rate, betas=BETAS, max_norm=largest_norm(spec)
            )
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True, capturable=on_gpu)
    # fused: one kernel for all parameters on CUDA, one pass over memory on CPU
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=BETAS, fused=True, capturable=on_gpu)
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, fused=True)


def largest_norm(spec: TrainSpec) -> float:
    """Of all gradients; clipping to an infinite norm changes nothing, and it is reported all the
    same.
    """
    return spec.gradient_clipping or float("inf")


def _rate(model: nn.Module, spec: TrainSpec) -> float | torch.Tensor:
    """The peak; on a GPU as a number there: a recorded step reads what the schedule has written."""
    if next(model.parameters()).device.type == "cuda":
        return torch.tensor(spec.peak_learning_rate, device="cuda")  # pragma: needs cuda
    return spec.peak_learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step use this learning rate; a rate on the GPU keeps its address."""
    shared = optimizer.param_groups[0]["lr"]
    if isinstance(shared, torch.Tensor):  # pragma: needs cuda
        shared.fill_(rate)
    for group in optimizer.param_groups:
        group["lr"] = shared if isinstance(shared, torch.Tensor) else rate


def _muon_and_adamw(model: nn.Module, spec: TrainSpec) -> Combined:
    """Muon at the size of AdamW's steps, so that one learning rate and one decay serve both.

    Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
    """
    matrices = hidden_matrices(model)
    ours = {id(parameter) for parameter in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
    rate = _rate(model, spec)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        packed = model.packed_rows() if isinstance(model, CausalModel) else {}
        parts.append(Muon(matrices, lr=rate, weight_decay=spec.weight_decay, packed_rows=packed))
    if others:
        on_gpu = isinstance(rate, torch.Tensor)
        groups = _groups(others, spec)
        parts.append(torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True, capturable=on_gpu))
    return Combined(parts)


def _groups(parameters: Sequence[nn.Parameter], spec: TrainSpec) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(spec: TrainSpec, step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0): a linear warm-up, then the chosen decay to 0."""
    warmup = math.ceil(spec.warmup_ratio * total_steps)
    if step < warmup:
        return spec.peak_learning_rate * (step + 1) / (warmup + 1)
    left = 1.0 - (step - warmup) / (total_steps - warmup)  # 1 at first, above 0 at the last step
    if spec.lr_scheduler_type == "cosine":
        return spec.peak_learning_rate * 0.5 * (1.0 - math.cos(math.pi * left))
    if spec.lr_scheduler_type == "linear":
        return spec.peak_learning_rate * left
    return spec.peak_learning_rate
