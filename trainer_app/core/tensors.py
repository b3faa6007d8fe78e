"""Named tensors of a model and its optimizer, in and out; files of them are safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = dict[str, "Tensor"]


def model_tensors(model: nn.Module) -> Tensors:
    """The model's own tensors by name, a tied one once, not copied."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = names - {name for name, _ in model.named_parameters()}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def copied_to_cpu(tensors: Mapping[str, Tensor]) -> Tensors:
    """A copy that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the model's own tensors, which stay where they are."""
    for name, tensor in model_tensors(model).items():
        tensor.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's state by ``<parameter>/<key>``, not copied."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``optimizer_tensors`` gave, on the parameters' device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor.clone()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: by_name[names[id(parameter)]]
        for index, parameter in enumerate(parameters)
        if names[id(parameter)] in by_name
    }
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; raises OSError with its number, as any file does."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path)
    except SafetensorError as error:
        # The library words an OSError as text: "... (os error 28)".
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code), str(path)) from error


def load_tensors(path: Path) -> Tensors:
    """The tensors of a file that ``save_tensors`` wrote, on the CPU."""
    return load_file(path)
