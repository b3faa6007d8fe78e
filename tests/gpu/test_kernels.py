"""The GPU's kernels against torch's own operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backends.contracts import ModelConfig
from backends.loading import model_family
from backends.models.gpt2 import DESIGN as GPT2
from backends.models.gpt2 import gpt2_shape
from backends.models.transformer import Transformer
from trainer_app.core.adamw import NARROW, WIDE, ClippedAdamW
from trainer_app.core.fp8 import in_fp8, use_fp8
from trainer_app.core.fp8_loss import loss_in_fp8
from trainer_app.core.residual import use_norm_kernel

BETAS = (0.9, 0.95)
SIZES = ((1,), (3, 5), (1024,), (1025,), (64, 512), (77,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vocab", [100, 8192, 8193, 50257, 128_000])
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("count", [1, 2048, 5000])
def test_a_scale_on_the_gpu_multiplies_in_float32(count: int, dtype: torch.dtype) -> None:
    from trainer_app.core.kernels import scaled  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    numbers = torch.randn(count, device="cuda").to(dtype)
    scale = torch.tensor(1 / 3, device="cuda")
    expected = (numbers.float() * scale).to(dtype)
    assert torch.equal(scaled(numbers, scale, out=torch.empty_like(numbers)), expected)
    assert scaled(numbers, scale, out=numbers) is numbers
    assert torch.equal(numbers, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 128), (513, 200), (1024, 3072)])
def test_the_gradient_of_gelu_and_the_sums_of_its_rows_are_those_of_torch(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    from trainer_app.core.gelu_kernels import gelu_gradient  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    u_MF = torch.randn(rows, width, device="cuda").to(dtype)
    grad_MF = torch.randn(rows, width, device="cuda").to(dtype)
    reference_MF = u_MF.float().requires_grad_()
    torch.autograd.backward(F.gelu(reference_MF, approximate="tanh"), grad_MF.float())
    assert reference_MF.grad is not None
    out_MF, sums_PF = gelu_gradient(grad_MF, u_MF)
    torch.testing.assert_close(out_MF, reference_MF.grad.to(dtype))
    torch.testing.assert_close(sums_PF.sum(0), out_MF.float().sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "width"),
    [(1, 128), (7, 100), (513, 64), (20_000, 768), (1_001, 576), (3_000, 1_600), (65, 8_192)],
)
def test_the_gradient_of_the_stream_and_the_sums_of_its_rows_are_those_of_torch(
    rows: int, width: int, stream: torch.dtype, dtype: torch.dtype, last: bool, rms: bool
) -> None:
    from trainer_app.core.residual_kernels import norm_gradient  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    x_MD = torch.randn(rows, width, device="cuda").mul_(2).add_(1).to(stream)
    grad_MD = torch.randn(rows, width, device="cuda").to(dtype)
    grad_x_MD = torch.randn(rows, width, device="cuda").to(stream)
    weight_D = torch.rand(width, device="cuda").to(stream)
    bias_D = torch.rand(width, device="cuda").to(stream)
    reference_MD, weight, bias = (t.float().requires_grad_() for t in (x_MD, weight_D, bias_D))
    mean_M1: Tensor | None = None
    if rms:
        normed_MD = F.rms_norm(reference_MD, (width,), weight, 1e-5)
        _, rstd_M1 = torch.ops.aten._fused_rms_norm(x_MD, (width,), weight_D, 1e-5)
    else:
        normed_MD = F.layer_norm(reference_MD, (width,), weight, bias)
        _, mean_M1, rstd_M1 = torch.native_layer_norm(x_MD, (width,), weight_D, bias_D, 1e-5)
    torch.autograd.backward(normed_MD, grad_MD.float())
    assert reference_MD.grad is not None
    expected_MD = reference_MD.grad if last else reference_MD.grad + grad_x_MD.float()

    out_MD, half_MD, sums_PSD = norm_gradient(
        grad_MD, x_MD, None if last else grad_x_MD, weight_D, mean_M1, rstd_M1
    )

    torch.testing.assert_close(out_MD, expected_MD.to(stream), atol=1e-3, rtol=1.6e-2)
    if dtype == stream:
        assert not half_MD.numel()
        half_MD = out_MD
    assert torch.equal(half_MD, out_MD.to(dtype))
    summed = (weight.grad,) if rms else (weight.grad, bias.grad, half_MD.float().sum(0))
    for sums_D, expected_D in zip(sums_PSD.sum(0), summed, strict=True):
        torch.testing.assert_close(sums_D, expected_D, rtol=1e-3, atol=1e-5 * rows)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_a_model_s_gradients_by_the_kernel_of_the_stream_are_those_without_it(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype, compiled: bool
) -> None:
    from trainer_app.core import residual_kernels  # noqa: PLC0415 - needs Triton

    config = ModelConfig(family=family, size="mini", vocab_size=512, max_seq_len=256)
    model = model_family(family).build(config).cuda()
    torch.manual_seed(0)
    ids_BT = torch.randint(0, config.vocab_size, (4, 256), device="cuda")

    def gradients() -> dict[str, Tensor]:
        hidden: Callable[[Tensor], Tensor] = model.hidden
        if compiled:
            torch.compiler.reset()  # or it takes the norms for what they were before
            hidden = torch.compile(hidden)
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cuda", dtype=dtype):
            hidden_BTD = hidden(ids_BT)
        grad_BTD = torch.randn(hidden_BTD.shape, device="cuda").to(hidden_BTD.dtype)
        torch.autograd.backward(hidden_BTD, grad_BTD)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    kernel, means = residual_kernels.norm_gradient, []

    def seen(
        grad: Tensor,
        x: Tensor,
        grad_x: Tensor | None,
        weight_D: Tensor,
        mean: Tensor | None,
        rstd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        means.append(mean)
        return kernel(grad, x, grad_x, weight_D, mean, rstd)

    monkeypatch.setattr(residual_kernels, "norm_gradient", seen)
    use_norm_kernel(model)
    found = gradients()
    assert means == [None] * 8  # behind each of eight layers
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        apart = (gradient - expected[name]).norm() / expected[name].norm()
        assert apart.item() < 3e-2, name


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


@pytest.mark.parametrize("layout", ["off a border", "transposed", "of a larger one"])
def test_gradients_of_any_layout_are_read_as_they_are(layout: str) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = clipped(ours, 0.5)
    reference = torch.optim.AdamW(groups(theirs), lr=rate(), betas=BETAS, capturable=True)
    for step in range(3):
        draw_gradients(theirs, step)
        for mine, other in zip(ours, theirs, strict=True):
            assert other.grad is not None
            mine.grad = laid_out(other.grad, layout)
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers otherwise in memory."""
    if layout == "off a border":
        larger = torch.zeros(tensor.numel() + 1, device="cuda")
        laid = larger[1:].view(tensor.shape)
    elif layout == "transposed":
        laid = torch.zeros(tensor.shape[::-1], device="cuda").permute(
            *reversed(range(tensor.dim()))
        )
    else:
        laid = torch.zeros(*tensor.shape, 2, device="cuda")[..., 0]
    return laid.copy_(tensor)


def test_overflowed_steps_of_a_recorded_graph_change_nothing() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = clipped(ours, 1.0), clipped(theirs, 1.0)
    overflowed = torch.zeros(1, device="cuda")
    setattr(optimizer, "found_inf", overflowed)  # noqa: B010 - as GradScaler does
    draw_gradients(ours, 0)
    optimizer.step()  # its kernels are compiled before they are recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    optimizer.recorded()
    for step, has_overflowed in enumerate((0, 1, 0, 1, 1, 0)):
        overflowed.fill_(has_overflowed)
        fresh = parameters()
        draw_gradients(fresh, step)
        for mine, drawn in zip(ours, fresh, strict=True):
            assert mine.grad is not None
            assert drawn.grad is not None
            mine.grad.copy_(drawn.grad if not has_overflowed else torch.full_like(drawn, math.inf))
        graph.replay()
        if step == 0:
            draw_gradients(theirs, 0)
            reference.step()
        if not has_overflowed:
            draw_gradients(theirs, step)
            reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_torch_s_own_has_saved_goes_on_here() -> None:
    ours, theirs = parameters(), parameters()
    first = torch.optim.AdamW(groups(ours), lr=rate(), betas=BETAS, fused=True, capturable=True)
    reference = torch.optim.AdamW(groups(theirs), lr=rate(), betas=BETAS, capturable=True)

    def step_both(optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            draw_gradients(ours, step)
            optimizer.step()
            draw_gradients(theirs, step)
            reference.step()

    step_both(first, range(3))
    second = clipped(ours, math.inf)
    second.load_state_dict(deepcopy(first.state_dict()))
    step_both(second, range(3, 8))
    torch.testing.assert_close(ours, theirs)
    assert second.state[ours[0]]["step"].item() == 8


needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="no GPU that multiplies in fp8",
)


@needs_fp8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 16), (7, 512), (2_000, 3_072), (65, 8_192)])
def test_gelu_and_its_gradient_are_those_of_torch_and_of_the_rows_in_fp8(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    from trainer_app.core.fp8_kernels import (  # noqa: PLC0415 - needs Triton
        gelu_gradient_in_fp8,
        gelu_in_fp8,
    )

    torch.manual_seed(0)
    u_MF = torch.randn(shape, device="cuda").mul_(3).to(dtype)
    grad_MF = torch.randn(shape, device="cuda").to(dtype)
    grad_MF[0] = 0  # a row without any has a scale, too
    reference_MF = u_MF.float().requires_grad_()
    y_MF = F.gelu(reference_MF, approximate="tanh")
    torch.autograd.backward(y_MF, grad_MF.float())
    assert reference_MF.grad is not None

    assert_in_fp8(y_MF.detach(), *gelu_in_fp8(u_MF))

    found8_MF, scales_M1, sums_PF = gelu_gradient_in_fp8(grad_MF, u_MF)
    assert_in_fp8(reference_MF.grad, found8_MF, scales_M1)
    torch.testing.assert_close(sums_PF.sum(0), reference_MF.grad.sum(0), atol=1e-3, rtol=1e-4)


def assert_in_fp8(x_MF: Tensor, x8_MF: Tensor, scales_M1: Tensor) -> None:
    """They are what ``in_fp8`` makes of it, but for roundings at a border."""
    expected8_MF, expected_M1 = in_fp8(x_MF)
    torch.testing.assert_close(scales_M1, expected_M1, atol=0.0, rtol=1e-4)
    same = (x8_MF.float() == expected8_MF.float()).float().mean().item()
    assert same > 0.999
    torch.testing.assert_close(x8_MF.float(), expected8_MF.float(), atol=0.01, rtol=0.14)


@needs_fp8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 16), (7, 512), (300, 768), (33, 8_192)])
def test_rows_in_fp8_are_those_of_torch_and_of_zeros_behind(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    from trainer_app.core.fp8_kernels import rows_in_fp8  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    x_MK = torch.randn(shape, device="cuda").to(dtype)
    assert_in_fp8(x_MK, *rows_in_fp8(x_MK))
    x8_RK, scales_R1 = rows_in_fp8(x_MK, rows=shape[0] + 5)
    assert_in_fp8(F.pad(x_MK, (0, 0, 0, 5)), x8_RK, scales_R1)


@needs_fp8
@pytest.mark.parametrize("shape", [(1, 16), (7, 512), (2_000, 3_072), (130, 144)])
def test_what_is_transposed_has_zeros_behind(shape: tuple[int, int]) -> None:
    from trainer_app.core.fp8_kernels import folded, transposed  # noqa: PLC0415 - needs Triton

    torch.manual_seed(0)
    x_MN = torch.randn(shape, device="cuda")
    behind = -shape[0] % 16
    x8_MN, scale_M1 = in_fp8(x_MN)
    assert torch.equal(transposed(x8_MN).float(), F.pad(x8_MN.float().t(), (0, behind)))
    x5_MN = x_MN.to(torch.float8_e5m2)
    assert torch.equal(transposed(x5_MN).float(), F.pad(x5_MN.float().t(), (0, behind)))

    factor_M1 = torch.rand(shape[0], 1, device="cuda")
    scale = (factor_M1 * scale_M1).amax()
    expected_NM = F.pad((x_MN * factor_M1 / scale).t(), (0, behind))
    found_NM = folded(x_MN, factor_M1, scale).float()
    assert found_NM.abs().amax() == 448.0
    torch.testing.assert_close(found_NM, expected_NM, atol=1e-3, rtol=0.0626)
    more_NM = folded(x_MN, factor_M1, scale, rows=shape[0] + 48).float()
    assert torch.equal(more_NM, F.pad(found_NM[:, : shape[0]], (0, 48)))


@needs_fp8
@pytest.mark.parametrize(("count", "vocab"), [(1, 5), (21, 300), (500, 50_257), (33, 70_001)])
def test_the_loss_in_fp8_is_torch_s_and_so_are_its_gradients(count: int, vocab: int) -> None:
    torch.manual_seed(0)
    hidden_ND = torch.randn(count, 64, device="cuda", dtype=torch.bfloat16)
    weight_VD = torch.randn(vocab, 64, device="cuda").mul_(0.3)
    targets_N = torch.randint(0, vocab, (count,), device="cuda")
    losses, *found = head_gradients(hidden_ND, weight_VD, targets_N, in_fp8=True)
    expected_losses, *expected = head_gradients(hidden_ND, weight_VD, targets_N, in_fp8=False)
    torch.testing.assert_close(losses, expected_losses, atol=0.0, rtol=0.03)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.08


@needs_fp8
@pytest.mark.parametrize("margin", [4.0, 8.0, 11.0])
def test_the_small_gradient_of_a_target_that_is_known_well_is_as_exact(margin: float) -> None:
    """By 1 - p of some 1e-1 to 1e-4: each row, which a norm over all of them would not show."""
    vocab, count = 500, 40
    weight_VD = torch.eye(vocab, 512, device="cuda")  # what fp8 has exactly
    targets_N = torch.randint(0, vocab, (count,), device="cuda")
    hidden_ND = torch.zeros(count, 512, device="cuda", dtype=torch.bfloat16)
    hidden_ND[torch.arange(count), targets_N] = margin
    _, ours_ND, _ = head_gradients(hidden_ND, weight_VD, targets_N, in_fp8=True)
    _, theirs_ND, _ = head_gradients(hidden_ND, weight_VD, targets_N, in_fp8=False)
    assert ((ours_ND - theirs_ND).norm(dim=1) / theirs_ND.norm(dim=1)).max() < 0.04


@needs_fp8
def test_a_logit_that_is_no_number_is_lost_nowhere() -> None:
    from trainer_app.core.fp8_kernels import cross_entropy_in_fp8  # noqa: PLC0415 - needs Triton

    logits_NP = torch.zeros(3, 128, device="cuda", dtype=torch.bfloat16)
    logits_NP[0, 5], logits_NP[1, 5] = math.nan, math.inf
    targets_N = torch.zeros(3, device="cuda", dtype=torch.int64)
    losses_N, gradient_NP, scales_N1 = cross_entropy_in_fp8(logits_NP, targets_N, vocab=100)
    assert losses_N.isfinite().tolist() == [False, False, True]
    whole_NP = gradient_NP.float() * scales_N1
    assert whole_NP.isfinite().all(dim=1).tolist() == [False, False, True]
    assert not whole_NP[2, 100:].any()


def head_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, in_fp8: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the gradients of three times the loss in float32."""
    hidden_ND, weight_VD = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    if in_fp8:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_in_fp8(hidden_ND, weight_VD, targets_N)
    else:
        loss = F.cross_entropy(hidden_ND.float() @ weight_VD.t(), targets_N)
    torch.autograd.backward(3 * loss)
    assert hidden_ND.grad is not None
    assert weight_VD.grad is not None
    return loss.detach(), hidden_ND.grad.float(), weight_VD.grad.float()


@needs_fp8
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_from_the_loss_in_fp8(frozen: str) -> None:
    hidden_ND = torch.randn(8, 16, device="cuda", requires_grad=frozen != "hidden")
    weight_VD = torch.randn(30, 16, device="cuda", requires_grad=frozen != "weight")
    targets_N = torch.arange(8, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        torch.autograd.backward(loss_in_fp8(hidden_ND, weight_VD, targets_N))
    assert (hidden_ND.grad is None) == (frozen == "hidden")
    assert (weight_VD.grad is None) == (frozen == "weight")


@needs_fp8
def test_in_the_head_s_gradients_a_target_does_not_drown_the_other_words() -> None:
    """Of equally likely words each gets a little, and the target the rest: all sums to nothing."""
    torch.manual_seed(0)
    vocab, count = 50_257, 16_384
    hidden_ND = torch.ones(count, 32, device="cuda", dtype=torch.bfloat16)
    weight_VD = torch.full((vocab, 32), 0.01, device="cuda", requires_grad=True)
    targets_N = torch.randint(0, vocab, (count,), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = loss_in_fp8(hidden_ND.requires_grad_(), weight_VD, targets_N)
    torch.autograd.backward(loss)
    assert weight_VD.grad is not None
    assert hidden_ND.grad is not None
    # of what the targets alone would leave, 1 in all and 0.01 for each token
    assert weight_VD.grad.sum(0).abs().max() < 0.1
    assert (hidden_ND.grad * count).abs().max() < 0.002


@needs_fp8
@pytest.mark.parametrize("shape", [(21, 64), (2_048, 256)])
def test_a_block_s_feed_forward_in_fp8_has_the_gradients_of_torch_s(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rows, width = shape
    design = gpt2_shape(width=width, layers=1, heads=2)
    config = ModelConfig(family="gpt2", size="tiny", vocab_size=32, max_seq_len=8)
    model = Transformer(config, GPT2, design)
    model.initialise()
    block = next(iter(model.to("cuda").blocks()))
    x_MD = torch.randn(1, rows, width, device="cuda")
    grad_MD = torch.randn(1, rows, width, device="cuda") * torch.rand(1, rows, 1, device="cuda")
    x_MD[0, 0] = grad_MD[0, 1] = 0  # rows of zeros have scales, too
    x_MD.requires_grad_()
    parts = [x_MD, *block.c_fc.parameters(), *block.mlp_proj.parameters()]
    expected = torch.autograd.grad(block.feed_forward(x_MD), parts, grad_MD)
    use_fp8(model, fused=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = torch.autograd.grad(block.feed_forward(x_MD), parts, grad_MD)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.08


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
