"""Where a run computes and in what numbers. All that only a GPU can execute stands here.

Lines that need CUDA are marked ``# pragma: needs cuda``: tests/gpu covers them on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from trainer_app.core.spec import RequestedDevice, RequestedPrecision
from trainer_app.errors import CudaNotAvailable, FieldError, OutOfMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from trainer_app.core.encode import TokenIds

ResolvedDevice = Literal["cpu", "cuda"]
ResolvedPrecision = Literal["fp32", "fp16", "bf16"]

LIBRARIES: Final = ("torch", "accelerate", "transformers", "tokenizers", "safetensors", "numpy")
M_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD: Final = -3
LARGEST_HEAP_BLOCK: Final = 32 << 20  # the most that glibc takes from its heap
LARGEST_INT: Final = 2**31 - 1
CPU_INFORMATION: Final = Path("/proc/cpuinfo")
RESIDENT_SHARE: Final = (
    8  # token ids that fill less than this part of a GPU's free memory live there
)


def resolve_device(requested: RequestedDevice, before: Fingerprint | None = None) -> ResolvedDevice:
    """The device to use: auto is the one of ``before``, if it is here, where a run goes on.

    Raises CudaNotAvailable where CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if requested == "auto":
        wanted = before.device if before else "cuda"
        return wanted if available else "cpu"
    if requested == "cuda" and not available:
        raise CudaNotAvailable("device cuda was asked for, but this worker has no usable GPU")
    return requested


def resolve_precision(
    requested: RequestedPrecision, device: ResolvedDevice, before: Fingerprint | None = None
) -> ResolvedPrecision:
    """The precision to use: auto is fp16 on CUDA and fp32 on CPU.

    Where a run goes on, auto is that of ``before`` on its device.

    Raises FieldError for fp16 or bf16 on CPU, where they would be slower.
    """
    if device == "cpu" and requested in ("fp16", "bf16"):
        raise FieldError("precision", f"{requested!r} needs a GPU; on a CPU use fp32 or auto")
    if requested == "auto":
        if before and before.device == device:
            return before.precision
        return "fp16" if device == "cuda" else "fp32"
    return requested


def recommended_batch_size(batch_size: int, device: ResolvedDevice) -> int:
    """A batch size that fills the device better: 8 for the default of 4 on CUDA."""
    return 8 if device == "cuda" and batch_size == 4 else batch_size


def recommended_batch_size_for(model_family: str, batch_size: int, device: ResolvedDevice) -> int:
    """Likewise by model family, for batches of up to 4 on CUDA."""
    if device == "cpu" or batch_size > 4:
        return batch_size
    return {"gpt2": 32, "char_lstm": 64}.get(model_family, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLoading:
    """How batches reach the device."""

    workers: int  # threads that prepare batches ahead; 0: the training thread does
    pin_memory: bool


def data_loading(
    workers: int | None, pin_memory: bool | None, device: ResolvedDevice
) -> DataLoading:
    """What was asked for, else min(4, cores) workers and pinned memory on CUDA, none on CPU."""
    on_gpu = device == "cuda"
    if workers is None:
        workers = min(4, available_cores()) if on_gpu else 0
    return DataLoading(workers=workers, pin_memory=on_gpu and pin_memory is not False)


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int) -> int:
    """Compute with so many CPU threads, 0 meaning all cores; how many those are."""
    threads = count or available_cores()
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of returning it after each step.

    A step would else get its large tensors as new pages, each zeroed by the kernel: up to a tenth
    of a CPU's time. Elsewhere than on glibc nothing happens.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def release_memory() -> None:
    """Return to the system what a finished job no longer holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # pragma: needs cuda
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.malloc_trim(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Within an equal fingerprint equal specs give equal bytes."""

    device: ResolvedDevice
    device_name: str
    precision: ResolvedPrecision
    threads: int
    torch: str  # version and build


def fingerprint(device: ResolvedDevice, precision: ResolvedPrecision, threads: int) -> Fingerprint:
    """What the bytes of a result depend on, beside the spec."""
    return Fingerprint(
        device=device,
        device_name=device_name(device),
        precision=precision,
        threads=threads,
        torch=torch.__version__,
    )


def device_name(device: ResolvedDevice) -> str:
    """The model of the processor that computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()  # pragma: needs cuda
    information = CPU_INFORMATION.read_text() if CPU_INFORMATION.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", information, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of all that computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def fresh_accelerator(
    device: ResolvedDevice, precision: ResolvedPrecision, accumulation: int
) -> Accelerator:
    """An Accelerator that knows nothing of the job before in this process.

    Accelerate keeps its state in the class: without the reset a second job with another
    precision is refused, and one with another accumulation counts on from the first.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - the only door
    GradientState._reset_state()  # noqa: SLF001 - the only door
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
    )


@contextmanager
def out_of_memory_named(what: str, device: str) -> Iterator[None]:
    """Turn a failed allocation into OutOfMemory, which says what did not fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{what} does not fit into {_memory(device)}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how torch words it on a CPU
            raise
        raise OutOfMemory(f"{what} does not fit into {_memory(device)}") from error


def _memory(device: str) -> str:
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()  # pragma: needs cuda
        return (
            f"the GPU's {total / 2**30:.1f} GiB ({free / 2**30:.1f} GiB free)"  # pragma: needs cuda
        )
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / 2**30:.1f} GiB of memory"


def resident_ids(ids: TokenIds, device: ResolvedDevice) -> Tensor | None:
    """The ids of a stream in the GPU's own memory where they fit well; None: they stay on disk."""
    if device == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info()  # pragma: needs cuda
    if 4 * len(ids) * RESIDENT_SHARE > free:  # pragma: needs cuda
        return None  # pragma: needs cuda
    return torch.from_numpy(ids.astype(np.int32)).cuda()  # pragma: needs cuda


def gathered(  # pragma: needs cuda
    ids: Tensor, starts_B: NDArray[np.int64], seq_len: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of the windows that begin there, from ids on the GPU."""
    starts = torch.from_numpy(starts_B).pin_memory().to(ids.device, non_blocking=True)
    window = ids[starts[:, None] + torch.arange(seq_len + 1, device=ids.device)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def sent_to_device(tensor: Tensor, device: ResolvedDevice, *, pin: bool) -> Tensor:
    """A tensor on the device; from pinned memory the copy runs beside the computation."""
    if device == "cpu":
        return tensor
    if pin:  # pragma: needs cuda
        tensor = tensor.pin_memory()  # pragma: needs cuda
    return tensor.to(device, non_blocking=pin)  # pragma: needs cuda


def random_states(device: ResolvedDevice) -> dict[str, Tensor]:
    """The states of all generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()  # pragma: needs cuda
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Put back what ``random_states`` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])  # pragma: needs cuda
