"""The GPUs that this machine may train on, found without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What to put into CUDA_VISIBLE_DEVICES for each GPU in turn; empty without one.

    A CUDA_VISIBLE_DEVICES in ``environment`` narrows and orders the answer, as for CUDA itself.
    """
    installed = _installed()
    allowed = environment.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return tuple(str(index) for index in range(installed))
    chosen: list[str] = []
    for name in (part.strip() for part in allowed.split(",")):
        # CUDA itself stops at the first name that it does not know.
        known = name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < installed)
        if not installed or not known:
            break
        chosen.append(name)
    return tuple(chosen)


def _installed() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        # A driver that hangs must not hang the start; one that is broken has no GPU to use.
        listing = subprocess.run(  # noqa: S603 (a fixed command, found on PATH)
            [tool, "-L"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
