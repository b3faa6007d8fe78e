"""The optimizers and the learning rate."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from trainer_app.core.optim import learning_rate, make_optimizer
from trainer_app.core.spec import (
    OPTIMIZERS,
    SCHEDULERS,
    WEIGHT_DECAY,
    OptimizerName,
    SchedulerName,
    TrainSpec,
)

SPEC = TrainSpec(corpus_sha256="", learning_rate=1.0, warmup_ratio=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_for_matrices_alone(name: OptimizerName) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = make_optimizer(model, replace(SPEC, optimizer=name, weight_decay=0.1))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.dim() == 2 else 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: OptimizerName) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    # Muon's steps are as long as the largest side of the matrix lets them be, here 4.
    rate = 0.2 if name == "muon" else 0.05
    spec = replace(SPEC, optimizer=name, learning_rate=rate, weight_decay=0.0)
    optimizer = make_optimizer(model, spec)
    x = torch.randn(32, 4)
    losses = []
    for _ in range(50):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_decay_of_its_own_keeps_no_optimizer_from_what_is_seldom_seen(
    name: OptimizerName,
) -> None:
    """A rare token's row has next to no gradient in most steps: what outweighs it unlearns it."""
    torch.manual_seed(0)
    model = nn.Embedding(8, 4)
    begun = model.weight.detach().clone()
    optimizer = make_optimizer(
        model, replace(SPEC, optimizer=name, learning_rate=1e-2, weight_decay=WEIGHT_DECAY[name])
    )
    for _ in range(100):
        torch.autograd.backward((model(torch.tensor([0])) * 1e-6).sum())
        optimizer.step()
        optimizer.zero_grad()
    kept = model.weight[1:].norm() / begun[1:].norm()
    assert kept > 0.85


def test_what_is_frozen_is_not_optimized() -> None:
    model = nn.Linear(4, 4)
    model.bias.requires_grad_(False)
    groups = make_optimizer(model, SPEC).param_groups
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rate_rises_to_the_peak_and_then_never_rises_again(name: SchedulerName) -> None:
    spec = replace(SPEC, lr_scheduler_type=name)
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == (1.0 if name == "constant" else pytest.approx(0.0, abs=0.02))
    assert rates[-1] > 0


def test_half_way_down_linear_and_cosine_are_at_half_the_peak() -> None:
    spec = replace(SPEC, warmup_ratio=0.0)
    assert learning_rate(replace(spec, lr_scheduler_type="linear"), 50, 100) == 0.5
    assert learning_rate(spec, 50, 100) == pytest.approx(0.5)


def test_a_warm_up_of_the_whole_run_never_reaches_the_decay() -> None:
    spec = replace(SPEC, warmup_ratio=1.0)
    assert [learning_rate(spec, step, 3) for step in range(3)] == [0.25, 0.5, 0.75]


def test_fine_tuning_caps_the_peak() -> None:
    tuned = replace(SPEC, pretrained_run_id="run-1", finetune_lr_cap=0.25, warmup_ratio=0.0)
    assert learning_rate(tuned, 0, 10) == 0.25
