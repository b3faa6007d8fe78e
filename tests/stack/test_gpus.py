"""Finding GPUs through the driver's own tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_app.stack.gpus import visible_gpus

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5c6e)
  MIG 1g.10gb     Device  0: (UUID: MIG-77aa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-9a41)
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi of a machine with two GPUs."""
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{LISTING}END\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("1", ("1",)),
        ("1, 0", ("1", "0")),
        ("GPU-9a41", ("GPU-9a41",)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", ("0",)),
    ],
)
def test_a_given_choice_narrows_and_orders(
    tool: Path, allowed: str, expected: tuple[str, ...]
) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": allowed}) == expected


def test_without_a_choice_all_are_seen(tool: Path) -> None:
    assert visible_gpus({}) == ("0", "1")


def test_without_a_driver_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-5c6e"}) == ()


def test_a_driver_that_does_not_work_is_none(tool: Path) -> None:
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus({}) == ()
