"""The GPU's kernels against torch's own operations."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_app.core.adamw import NARROW, WIDE, ClippedAdamW

BETAS = (0.9, 0.95)
SIZES = ((1,), (3, 5), (1024,), (1025,), (64, 512), (77,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vocab", [100, 8192, 8193, 50257, 53248, 53249, 128_000])
@pytest.mark.parametrize("padding", [0, 11])
def test_the_loss_and_its_gradient_are_those_of_torch(
    vocab: int, padding: int, dtype: torch.dtype
) -> None:
    from trainer_app.core.kernels import cross_entropy_  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    logits_NP = torch.randn(7, vocab + padding, device="cuda").mul_(5).to(dtype)
    targets_N = torch.randint(0, vocab, (7,), device="cuda")
    targets_N[:2] = torch.tensor([0, vocab - 1])
    reference_NV = logits_NP[:, :vocab].float().requires_grad_()
    expected_N = F.cross_entropy(reference_NV, targets_N, reduction="none")
    torch.autograd.backward(expected_N.sum())
    untouched_NP = logits_NP.clone()
    losses_N = cross_entropy_(logits_NP, targets_N, vocab=vocab, with_gradient=False)
    assert torch.equal(logits_NP, untouched_NP)
    torch.testing.assert_close(losses_N, expected_N)
    assert torch.equal(
        cross_entropy_(logits_NP, targets_N, vocab=vocab, with_gradient=True), losses_N
    )
    assert reference_NV.grad is not None
    torch.testing.assert_close(logits_NP[:, :vocab], reference_NV.grad.to(dtype))
    assert not logits_NP[:, vocab:].any()


@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("offset", [0, 1])
def test_clipped_steps_are_those_of_torch(max_norm: float, offset: int) -> None:
    ours, theirs = parameters(offset), parameters(offset)
    optimizer = clipped(ours, max_norm)
    assert optimizer._border == (NARROW if offset else WIDE)
    reference = torch.optim.AdamW(groups(theirs), lr=rate(), betas=BETAS, capturable=True)
    for step in range(20):
        draw_gradients(ours, step)
        draw_gradients(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        reference.step()
        optimizer.step()
        torch.testing.assert_close(optimizer.norm, norm)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
        for key, value in reference.state[other].items():
            torch.testing.assert_close(optimizer.state[mine][key], value)


def test_a_step_of_which_fp16_overflowed_changes_nothing() -> None:
    tensors = parameters()
    optimizer = clipped(tensors, 1.0)
    draw_gradients(tensors, 0)
    optimizer.step()
    before = deepcopy(optimizer.state_dict()["state"]), [t.detach().clone() for t in tensors]
    draw_gradients(tensors, 1)
    setattr(optimizer, "found_inf", torch.ones(1, device="cuda"))  # noqa: B010 - as GradScaler does
    optimizer.step()
    torch.testing.assert_close(optimizer.state_dict()["state"], before[0], rtol=0, atol=0)
    torch.testing.assert_close([t.detach() for t in tensors], before[1], rtol=0, atol=0)


def test_what_was_saved_goes_on_in_the_same_bytes() -> None:
    whole, parted = parameters(), parameters()
    optimizer, first = clipped(whole, 1.0), clipped(parted, 1.0)
    for step in range(3):
        draw_gradients(whole, step)
        optimizer.step()
        draw_gradients(parted, step)
        first.step()
    second = clipped(parted, 1.0)
    second.load_state_dict(deepcopy(first.state_dict()))
    for step in range(3, 6):
        draw_gradients(whole, step)
        optimizer.step()
        draw_gradients(parted, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))


def parameters(offset: int = 0) -> list[Tensor]:
    """Of many sizes, each ``offset`` numbers off a border."""
    random = torch.Generator("cuda").manual_seed(1)
    made = []
    for size in SIZES:
        flat = torch.randn(math.prod(size) + offset, device="cuda", generator=random)
        made.append(flat[offset:].view(size).requires_grad_())
    return made


def draw_gradients(tensors: list[Tensor], step: int) -> None:
    random = torch.Generator("cuda").manual_seed(100 + step)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, device="cuda", generator=random)


def rate() -> Tensor:
    return torch.tensor(1e-2, device="cuda")


def groups(tensors: list[Tensor]) -> list[dict[str, object]]:
    return [
        {"params": tensors[:3], "weight_decay": 0.1},
        {"params": tensors[3:], "weight_decay": 0.0},
    ]


def clipped(tensors: list[Tensor], max_norm: float) -> ClippedAdamW:
    return ClippedAdamW(groups(tensors), lr=rate(), betas=BETAS, max_norm=max_norm)
