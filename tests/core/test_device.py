"""Devices, precision and what they imply. Rules for CUDA itself are tested in tests/gpu."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer_app.core import device
from trainer_app.core.device import (
    DataLoading,
    Fingerprint,
    ResolvedDevice,
    ResolvedPrecision,
    available_cores,
    copy_ids,
    data_loading,
    fresh_accelerator,
    out_of_memory_named,
    recommended_batch_size,
    recommended_batch_size_for,
    resolve_device,
    resolve_precision,
    use_threads,
    versions,
)
from trainer_app.core.spec import HALF_PRECISIONS
from trainer_app.errors import CudaNotAvailable, FieldError, OutOfMemory

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


@no_gpu
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(CudaNotAvailable):
        resolve_device("cuda")


def place(device: ResolvedDevice, precision: ResolvedPrecision) -> Fingerprint:
    """Where a run was, as its checkpoint says."""
    return Fingerprint(
        device=device, device_name="any", precision=precision, threads=1, torch="2.0.0"
    )


@pytest.mark.parametrize(
    ("before", "gpu", "expected"),
    [
        (place("cpu", "fp32"), True, ("cpu", "fp32")),
        (place("cpu", "fp32"), False, ("cpu", "fp32")),
        (place("cuda", "fp16"), True, ("cuda", "fp16")),
        (place("cuda", "bf16"), True, ("cuda", "bf16")),
        (place("cuda", "fp16"), False, ("cpu", "fp32")),
        (None, True, ("cuda", "fp16")),
    ],
)
def test_auto_is_where_the_run_was_before_if_that_is_here(
    before: Fingerprint | None,
    gpu: bool,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    device = resolve_device("auto", before)
    assert (device, resolve_precision("auto", device, before)) == expected


def test_what_is_asked_for_by_name_counts_more_than_where_the_run_was() -> None:
    before = place("cuda", "bf16")
    assert resolve_device("cpu", before) == "cpu"
    assert resolve_precision("fp16", "cuda", before) == "fp16"


def test_auto_precision_is_fp32_on_a_cpu_and_fp16_on_cuda() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("auto", "cuda") == "fp16"
    assert resolve_precision("bf16", "cuda") == "bf16"
    assert resolve_precision("fp32", "cpu") == "fp32"


def test_half_precision_on_a_cpu_is_an_error() -> None:
    for requested in HALF_PRECISIONS:
        with pytest.raises(FieldError, match=f"precision: '{requested}' needs a GPU"):
            resolve_precision(requested, "cpu")


def test_batch_sizes_grow_on_cuda_alone() -> None:
    assert recommended_batch_size(4, "cuda") == 8
    assert recommended_batch_size(5, "cuda") == 5
    assert recommended_batch_size(4, "cpu") == 4
    sizes = {family: recommended_batch_size_for(family, 4, "cuda") for family in ("gpt2", "llama")}
    assert sizes == {"gpt2": 32, "llama": 16}
    assert recommended_batch_size_for("char_lstm", 1, "cuda") == 64
    assert recommended_batch_size_for("gpt2", 5, "cuda") == 5
    assert recommended_batch_size_for("gpt2", 4, "cpu") == 4


def test_workers_and_pinned_memory_are_for_cuda() -> None:
    assert data_loading(None, None, "cpu") == DataLoading(workers=0, pin_memory=False)
    assert data_loading(None, None, "cuda") == DataLoading(
        workers=min(4, available_cores()), pin_memory=True
    )
    assert data_loading(2, True, "cpu") == DataLoading(workers=2, pin_memory=False)
    assert data_loading(0, False, "cuda") == DataLoading(workers=0, pin_memory=False)


def test_threads_are_set_and_nought_means_all_cores() -> None:
    try:
        assert use_threads(1) == torch.get_num_threads() == 1
        assert use_threads(0) == available_cores() >= 1
    finally:
        torch.set_num_threads(1)


def test_cores_are_counted_where_the_system_knows_no_affinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() >= 1


def test_a_second_job_in_one_process_gets_its_own_accumulation() -> None:
    assert fresh_accelerator("cpu", "fp32", 4).gradient_accumulation_steps == 4
    assert fresh_accelerator("cpu", "fp32", 1).gradient_accumulation_steps == 1


def test_an_allocation_that_fails_is_out_of_memory_with_the_numbers() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^gpt2 xl does not fit into [\d.]+ GiB of memory"),
        out_of_memory_named("gpt2 xl", "cpu"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(OutOfMemory), out_of_memory_named("gpt2 xl", "cpu"):
        raise torch.OutOfMemoryError
    with (
        pytest.raises(OutOfMemory, match="gpt2 xl does not"),
        out_of_memory_named("gpt2 xl", "cpu"),
    ):
        np.empty(1 << 60, dtype=np.uint8)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_named("gpt2", "cpu"):
        raise RuntimeError("shape")


def test_the_versions_name_all_that_computes() -> None:
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
    assert set(versions()) == {"python", *device.LIBRARIES}


def test_the_processor_has_a_name() -> None:
    assert device.device_name("cpu")


def test_the_processor_has_a_name_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "CPU_INFORMATION", Path("/nonexistent"))
    assert device.device_name("cpu")


@pytest.mark.parametrize("count", [1, 4, 10])
def test_ids_are_copied_piece_by_piece(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(device, "IDS_COPIED_AT_ONCE", 4)
    ids = np.arange(65_530, 65_530 + count, dtype=np.uint32)
    target = torch.empty(count, dtype=torch.int32)
    copy_ids(ids, target)
    assert target.tolist() == ids.tolist()


def test_copying_ids_takes_a_few_pieces_of_memory() -> None:
    ids = np.ones(1 << 24, dtype=np.uint16)
    target = torch.empty(len(ids), dtype=torch.int32)
    tracemalloc.start()
    copy_ids(ids, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 4 * device.IDS_COPIED_AT_ONCE < 4 * len(ids)
