"""Operations and memory of a run, counted."""

from __future__ import annotations

import pytest
import torch

from backends.contracts import ModelConfig
from backends.loading import model_family
from trainer_app.core import device
from trainer_app.core.device import forget_peak_memory, peak_memory
from trainer_app.core.performance import flops_per_token, peak_flops


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # 2 layers of 12 x 128 x 128 weights, the tied head; 2 layers of attention 128 wide
        ("gpt2", 6 * (2 * 12 * 128 * 128 + 300 * 128) + 12 * 2 * 128 * 64),
        # 4 x 256 rows a layer, from 128 and 256 wide inputs and 256 wide states; the head
        ("char_lstm", 6 * (1024 * (128 + 256) + 1024 * (256 + 256) + 300 * 256)),
    ],
)
def test_a_token_costs_six_operations_a_weight_and_twelve_a_place_that_it_looks_at(
    family: str, expected: int
) -> None:
    config = ModelConfig(family=family, size="tiny", vocab_size=300, max_seq_len=64)
    model = model_family(family).build(config)
    assert flops_per_token(model, 64) == expected
    model.requires_grad_(False)
    assert flops_per_token(model, 64) == expected


def test_the_peak_of_a_gpu_is_known_by_its_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "fp8") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    for other in (
        "NVIDIA L40",
        "NVIDIA RTX A1000",
        "NVIDIA T400",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ):
        assert peak_flops(other, "bf16") is None
    assert peak_flops("AMD EPYC 9R14", "fp32") is None


def test_the_peak_of_memory_counts_from_where_it_was_forgotten() -> None:
    del (large := [torch.ones(1 << 24)])[:]
    forget_peak_memory("cpu")
    before = peak_memory("cpu")
    large.append(torch.ones(1 << 24))
    assert 50 << 20 < peak_memory("cpu") - before < 100 << 20


def test_elsewhere_than_on_linux_the_process_has_one_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "PROCESS_STATUS", device.PROCESS_STATUS / "nowhere")
    monkeypatch.setattr(device, "PEAK_RESET", device.PEAK_RESET / "nowhere")
    forget_peak_memory("cpu")
    assert peak_memory("cpu") > 10 << 20
