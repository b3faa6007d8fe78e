from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

class Accelerator:
    device: torch.device
    sync_gradients: bool
    step: int
    gradient_accumulation_steps: int
    mixed_precision: str
    scaler: torch.amp.GradScaler | None

    def __init__(
        self,
        *,
        cpu: bool = ...,
        mixed_precision: str = ...,
        gradient_accumulation_steps: int = ...,
    ) -> None: ...
    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]: ...
    def accumulate(self, *models: nn.Module) -> AbstractContextManager[None]: ...
    def backward(self, loss: Tensor) -> None: ...
    def unscale_gradients(self) -> None: ...
    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor: ...
