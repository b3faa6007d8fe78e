"""The loss and its gradients."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from trainer_app.core import loss
from trainer_app.core.loss import chunked_loss, next_token_loss, why_unfused


def inputs(rows: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator)
    weight = torch.randn(vocab, 16, generator=generator)
    return hidden, weight, torch.randint(0, vocab, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [1, 512, 700])
def test_made_in_chunks_the_loss_and_its_gradients_are_those_of_the_whole(rows: int) -> None:
    hidden, weight, targets = inputs(rows, 4096)
    gradients = []
    for in_chunks in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = chunked_loss(h, w, targets) if in_chunks else F.cross_entropy(h @ w.t(), targets)
        gradients.append([value.detach(), *torch.autograd.grad(3 * value, [h, w])])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_the_gradients_made_in_chunks_are_scaled_where_they_are() -> None:
    hidden, weight, targets = inputs(600, 4096)
    weight.requires_grad_()
    value = 3 * chunked_loss(hidden, weight, targets)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        torch.autograd.backward(value)
    taken = [event.self_cpu_memory_usage for event in profiled.events() or ()]
    assert taken
    assert max(taken) < 4 * weight.numel()


def test_gradients_that_were_scaled_already_are_never_scaled_twice() -> None:
    hidden, weight, targets = inputs(600, 4096)
    value = chunked_loss(hidden, weight.requires_grad_(), targets)
    torch.autograd.backward(3 * value, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(3 * value)


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_what_is_frozen_gets_no_gradient(trained: tuple[bool, bool]) -> None:
    hidden, weight, targets = inputs(600, 4096)
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    torch.autograd.backward(chunked_loss(hidden, weight, targets))
    assert ((hidden.grad is not None), (weight.grad is not None)) == trained


def test_large_batches_are_made_in_chunks_and_small_ones_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = inputs(600, 4096)
    with torch.inference_mode():
        large = next_token_loss(hidden, weight, targets)
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 1 << 30)
        assert large.item() == pytest.approx(next_token_loss(hidden, weight, targets).item())


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    hidden, weight, targets = inputs(40, 4096)
    value = next_token_loss(hidden * 0, weight, targets)
    assert value.item() == pytest.approx(math.log(4096), rel=1e-5)


def test_an_evaluation_computes_no_gradient() -> None:
    hidden, weight, targets = inputs(600, 4096)
    weight.requires_grad_()
    counted = []
    for recorded in (torch.inference_mode(), torch.enable_grad()):
        with recorded, profile(activities=[ProfilerActivity.CPU]) as profiled:
            next_token_loss(hidden, weight, targets)
        counted.append(sum(event.key == "aten::addmm_" for event in profiled.key_averages()))
    assert counted == [0, 1]


@pytest.mark.skipif(find_spec("triton") is not None, reason="torch came with Triton")
def test_kernels_of_our_own_need_triton() -> None:
    assert why_unfused(torch.float32) == "torch came without Triton"
