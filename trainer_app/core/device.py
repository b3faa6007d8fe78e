"""Where a run computes and in what numbers. All that only a GPU can execute stands here.

Lines that need CUDA are marked ``# pragma: needs cuda``: tests/gpu covers them on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from trainer_app.core.spec import HALF_PRECISIONS, RequestedDevice, RequestedPrecision
from trainer_app.errors import CudaNotAvailable, FieldError, OutOfMemory

if TYPE_CHECKING:
    from torch import Tensor

    from trainer_app.core.batches import Batches
    from trainer_app.core.encode import TokenIds

ResolvedDevice = Literal["cpu", "cuda"]
ResolvedPrecision = Literal["fp32", "fp16", "bf16", "fp8"]
# Raised with each change of the engine after which an equal spec may give other bytes.
ENGINE: Final = 6
FP8_CAPABILITY: Final = (9, 0)  # Hopper's

LIBRARIES: Final = ("torch", "accelerate", "transformers", "tokenizers", "safetensors", "numpy")
M_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD: Final = -3
LARGEST_HEAP_BLOCK: Final = 32 << 20  # the most that glibc takes from its heap
LARGEST_INT: Final = 2**31 - 1
CPU_INFORMATION: Final = Path("/proc/cpuinfo")
PROCESS_STATUS: Final = Path("/proc/self/status")
PEAK_RESET: Final = Path("/proc/self/clear_refs")
RESIDENT_SHARE: Final = 8  # ids that fill less than this part of a GPU's free memory live there
IDS_COPIED_AT_ONCE: Final = 1 << 20


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

    Raises FieldError for less than fp32 on CPU, where it would be slower, and for fp8 on a GPU
    that does not multiply in it.
    """
    if device == "cpu" and requested in HALF_PRECISIONS:
        raise FieldError("precision", f"{requested!r} needs a GPU; on a CPU use fp32 or auto")
    if requested == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        name = device_name(device)  # pragma: needs cuda
        why = f"'fp8' needs an H100 or later, and this is {name}"  # pragma: needs cuda
        raise FieldError("precision", why)  # pragma: needs cuda
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


def allocated_bytes() -> dict[str, int]:
    """What tensors of this process have of a GPU's memory: none where it has not used it yet."""
    return {"cuda": torch.cuda.memory_allocated()}


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
    engine: int = 1  # ENGINE of the version that computed; those before 2 did not say


def fingerprint(device: ResolvedDevice, precision: ResolvedPrecision, threads: int) -> Fingerprint:
    """What the bytes of a result depend on, beside the spec."""
    return Fingerprint(
        device=device,
        device_name=device_name(device),
        precision=precision,
        threads=threads,
        torch=torch.__version__,
        engine=ENGINE,
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
    # What cuBLAS asks for to give equal bytes; it is as much as it takes anyway on current GPUs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - the only door
    GradientState._reset_state()  # noqa: SLF001 - the only door
    return Accelerator(
        cpu=device == "cpu",
        # what fp8 does not multiply is in bf16
        mixed_precision={"fp32": "no", "fp8": "bf16"}.get(precision, precision),
        gradient_accumulation_steps=accumulation,
    )


def forget_peak_memory(device: ResolvedDevice) -> None:
    """Let ``peak_memory`` count from now on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # pragma: needs cuda
    else:
        with suppress(OSError):  # Linux counts anew when it is asked so
            PEAK_RESET.write_text("5")


def peak_memory(device: ResolvedDevice) -> int:
    """The most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()  # pragma: needs cuda
    status = PROCESS_STATUS.read_text() if PROCESS_STATUS.exists() else ""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if found:
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def deterministic_algorithms(device: ResolvedDevice, *, wanted: bool) -> Iterator[None]:
    """Let a GPU compute equal bytes from equal inputs, which its fastest kernels do not.

    A CPU does so anyway.
    """
    if device == "cpu" or not wanted:
        yield
        return
    # Memory is written before it is read; to fill it first is a help for debugging.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # pragma: needs cuda
    torch.use_deterministic_algorithms(True)  # pragma: needs cuda
    try:  # pragma: needs cuda
        yield
    finally:  # pragma: needs cuda
        torch.use_deterministic_algorithms(False)


@contextmanager
def out_of_memory_named(what: str, device: str) -> Iterator[None]:
    """Turn a failed allocation into OutOfMemory, which says what did not fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:  # torch's, and numpy's or Python's
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
    resident = torch.empty(len(ids), dtype=torch.int32, device="cuda")  # pragma: needs cuda
    copy_ids(ids, resident)  # pragma: needs cuda
    return resident  # pragma: needs cuda


def copy_ids(ids: TokenIds, target: Tensor) -> None:
    """Fill an int32 tensor with the ids of a stream, by way of little memory."""
    for start in range(0, len(ids), IDS_COPIED_AT_ONCE):
        piece = ids[start : start + IDS_COPIED_AT_ONCE].astype(np.int32)
        target[start : start + len(piece)] = torch.from_numpy(piece)


class DeviceWindows:  # pragma: needs cuda
    """The windows of one step's micro-batches on the GPU, at addresses that stay.

    A micro-batches, B sequences, T tokens. With resident ids only the windows' places are sent.
    """

    def __init__(self, batches: Batches, resident: Tensor | None, *, pin: bool) -> None:
        self.resident = resident is not None
        self._batches = batches
        self._pin = pin
        shape_AB = (batches.accumulation, batches.batch_size)
        if resident is not None:
            self._ids = resident
            self._starts_AB = torch.zeros(shape_AB, dtype=torch.int64, device="cuda")
            self._offsets_T = torch.arange(batches.seq_len + 1, device="cuda")
        else:
            shape = (2, *shape_AB, batches.seq_len)
            self._inputs_ABT, self._targets_ABT = torch.zeros(
                shape, dtype=torch.int64, device="cuda"
            )

    def load_starts(self, step: int) -> None:
        """Send the places of all windows of a step (from 0)."""
        starts = [self._batches.starts(step, m) for m in range(self._batches.accumulation)]
        self._send(torch.from_numpy(np.stack(starts)), self._starts_AB)

    def load_windows(self, micro: int, inputs_BT: Tensor, targets_BT: Tensor) -> None:
        """Send one micro-batch."""
        self._send(inputs_BT, self._inputs_ABT[micro])
        self._send(targets_BT, self._targets_ABT[micro])

    def micro_batch(self, micro: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), int64, of what was loaded."""
        if not self.resident:
            return self._inputs_ABT[micro], self._targets_ABT[micro]
        window = self._ids[self._starts_AB[micro, :, None] + self._offsets_T].long()
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def _send(self, source: Tensor, target: Tensor) -> None:
        """Copy in the order of the GPU's work; from pinned memory, beside it."""
        target.copy_(source.pin_memory() if self._pin else source, non_blocking=self._pin)


class StepEnd:
    """The place in the device's work at which a step ends. A CPU is always past it."""

    def __init__(self, outcome: Tensor) -> None:
        self._event: torch.Event | None = None
        if outcome.device.type == "cuda":  # pragma: needs cuda
            self._event = torch.Event(device="cuda")
            self._event.record()

    def is_past(self) -> bool:
        """Whether the device has got there."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Wait until the device has got there."""
        if self._event is not None:
            self._event.synchronize()  # pragma: needs cuda

    def follow(self, stream: torch.Stream) -> None:  # pragma: needs cuda
        """Let what is put on a stream from now on happen after it."""
        if self._event is not None:
            stream.wait_event(self._event)


def read_beside(outcomes: Sequence[Tensor], end: StepEnd) -> list[list[float]]:
    """The values of tensors that are ready at ``end``: the GPU goes on with what comes after."""
    if outcomes[0].device.type == "cpu":
        return torch.stack(list(outcomes)).tolist()
    beside = torch.Stream(device="cuda")  # pragma: needs cuda
    end.follow(beside)  # pragma: needs cuda
    with beside:  # pragma: needs cuda
        return torch.stack(list(outcomes)).tolist()  # pragma: needs cuda


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
