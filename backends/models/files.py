"""A model's files in the form that the HuggingFace world reads: JSON beside safetensors.

Never pickle. The writers write into a folder that the caller stages, fsyncs and renames; an
error of the disk is an OSError with its number.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backends.json_files import open_plain, read_json, shown
from trainer_app.errors import ModelIncompatible

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_FLOATS: Final = ("F64", "F32", "F16", "BF16", "F8_")  # what safetensors' names of them begin with
_LARGEST: Final = 1 << 24  # number in a config: products of three are still sizes of a tensor


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object with sorted keys, so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, object]:
    """The object in config.json; raises ModelIncompatible where there is none."""
    return _read_object(directory / CONFIG_FILE)


def integer(config: Mapping[str, object], name: str) -> int:
    """A positive whole number of a config; raises ModelIncompatible for anything else."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ModelIncompatible(
            f"{CONFIG_FILE}: {name} is {shown(value)}, not a whole number of 1 to {_LARGEST}"
        )
    return value


def check_layers(layers: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelIncompatible for more layers than the weights can be of.

    To be asked before such a model is built: each of its layers takes time and memory.
    """
    if layers > len(tensors):
        raise ModelIncompatible(
            f"{CONFIG_FILE}: {layers} layers, but {WEIGHTS_FILE} has {len(tensors)} tensors"
        )


def number(config: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A positive number of a config; raises ModelIncompatible for anything else."""
    value = config.get(name, default)
    largest = sys.float_info.max  # an integer of JSON may be beyond it
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= largest:
        raise ModelIncompatible(f"{CONFIG_FILE}: {name} is {shown(value)}, not a positive number")
    return float(value)


def require(config: Mapping[str, object], computed: Mapping[str, tuple[object, ...]]) -> None:
    """Raise ModelIncompatible for a field that has none of the values that are computed here.

    None stands for a field that is absent; the first value is the one that the message names.
    """
    for name, values in computed.items():
        if config.get(name) not in values:
            raise ModelIncompatible(
                f"{CONFIG_FILE}: {name} is {shown(config.get(name))}; supported: {values[0]!r}"
            )


def size_name(sizes: Mapping[str, object], shape: object) -> str:
    """The name of a shape, "custom" where it has none: a published model may have any."""
    return next((name for name, known in sizes.items() if known == shape), "custom")


def write_weights(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Write model.safetensors: equal tensors give equal bytes. Raises OSError."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = directory / WEIGHTS_FILE
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(on_cpu, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library words an error of the disk as text: "... (os error 28)".
        number = map(int, re.findall(r"\(os error (\d+)\)", str(error)))
        raise OSError(*number, str(error)) from error
    path.chmod(mode)  # as of all other files: the library leaves it to its owner alone


def read_weights(directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that its index lists, as float32.

    They are copies: what becomes of the files later does not reach them. ``without``: endings of
    the names of those that are left out. Raises ModelIncompatible where a file is missing, damaged,
    no plain file or outside the folder, and where a tensor is not of floating-point numbers.
    """
    tensors: dict[str, Tensor] = {}
    for name in _weight_files(directory):
        try:
            with open_plain(directory / name):  # the library would wait for a FIFO
                tensors |= _copied(directory / name, without)
        except (SafetensorError, FileNotFoundError) as error:
            raise ModelIncompatible(f"{name} cannot be read: {error}") from error
    return tensors


def _copied(path: Path, without: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            if name.endswith(without):
                continue
            if not (dtype := file.get_slice(name).get_dtype()).startswith(_FLOATS):
                raise ModelIncompatible(
                    f"{path.name}: {name} is of {dtype}, no floating-point numbers that can be "
                    "cast to float32"
                )
            tensors[name] = file.get_tensor(name).to(torch.float32, copy=True)
    return tensors


def taken_out(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, which ``tensors`` lets go of: what is made of it is not there twice."""
    for name in list(tensors):
        yield name, tensors.pop(name)


def drop_tied_head(tensors: dict[str, Tensor], head: str, embedding: str) -> None:
    """Remove the head from a file that holds it although it is the embedding.

    Raises ModelIncompatible where it is not.
    """
    weight = tensors.pop(head, None)
    if weight is not None and not torch.equal(weight, tensors.get(embedding, weight)):
        raise ModelIncompatible(f"{WEIGHTS_FILE}: lm_head.weight differs from the embedding")


def allocate(model: nn.Module) -> None:
    """Give the parameters of a model on the meta device memory, with anything in it, on the CPU."""
    empty = {name: torch.empty_like(t, device="cpu") for name, t in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make the tensors the weights of ``model``, which may still be on the meta device.

    Raises ModelIncompatible, naming the tensor, where names or shapes differ.
    """
    expected = model.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ModelIncompatible(f"{WEIGHTS_FILE}: {missing[0]} is missing")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise ModelIncompatible(f"{WEIGHTS_FILE}: {surplus[0]} does not belong to this model")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelIncompatible(
                f"{WEIGHTS_FILE}: {name} has shape {tuple(tensor.shape)}, "
                f"the model needs {tuple(expected[name].shape)}"
            )
    model.load_state_dict(dict(tensors), assign=True)


def _weight_files(directory: Path) -> list[str]:
    if not (directory / INDEX_FILE).exists():
        return [WEIGHTS_FILE]
    weight_map = _read_object(directory / INDEX_FILE).get("weight_map")
    names = sorted({str(n) for n in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not all(re.fullmatch(r"model-[0-9]+-of-[0-9]+\.safetensors", name) for name in names):
        raise ModelIncompatible(f"{INDEX_FILE} names files that are no shards of this model")
    return names


def _read_object(path: Path) -> dict[str, object]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelIncompatible(f"{path.name} holds no JSON object")
    return content
