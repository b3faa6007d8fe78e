"""The optimizer and its learning rate, which is a function of the step: no scheduler state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core.spec import TrainSpec

if TYPE_CHECKING:
    from torch import nn

BETAS: Final = (0.9, 0.95)  # Brown et al.: Language models are few-shot learners (2020), app. B
MOMENTUM: Final = 0.9  # of sgd


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The optimizer of what is trainable: weight decay on matrices, none on biases and norms.

    Decay is decoupled for adamw, and part of the gradient for adam and sgd.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = spec.peak_learning_rate
    # fused: one kernel for all parameters on CUDA, one pass over memory on CPU
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=BETAS, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, fused=True)


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
