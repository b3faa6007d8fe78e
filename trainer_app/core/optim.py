"""The optimizer and its learning rate, which is a function of the step: no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core.muon import Combined, hidden_matrices
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
    rate = spec.peak_learning_rate
    # fused: one kernel for all parameters on CUDA, one pass over memory on CPU
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=BETAS, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, fused=True)


def _muon_and_adamw(model: nn.Module, spec: TrainSpec) -> Combined:
    """Muon at the size of AdamW's steps, so that one learning rate and one decay serve both.

    Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
    """
    matrices = hidden_matrices(model)
    ours = {id(parameter) for parameter in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
    rate = spec.peak_learning_rate
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        decay = spec.weight_decay
        parts.append(
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        parts.append(torch.optim.AdamW(_groups(others, spec), lr=rate, betas=BETAS, fused=True))
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
