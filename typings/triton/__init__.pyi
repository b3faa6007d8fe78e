"""The part of Triton that the kernels use; a build of torch for CPUs comes without it."""

from typing import Protocol

from torch import Tensor

class Launch(Protocol):
    def __call__(self, *arguments: Tensor | int, num_warps: int) -> None: ...

class JITFunction:
    def __getitem__(self, grid: tuple[int, ...]) -> Launch: ...

def jit(fn: object) -> JITFunction: ...
def next_power_of_2(n: int) -> int: ...
