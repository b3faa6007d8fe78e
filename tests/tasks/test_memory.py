"""What a worker tells of its memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tasks.memory import device_bytes

NOWHERE = Path("/nonexistent/memory.max")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but for the shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(tools: Path, script: str) -> None:
    tool = tools / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_without_a_gpu_it_is_the_machines(tools: Path) -> None:
    assert device_bytes({}, NOWHERE) == {"cpu": psutil.virtual_memory().total}


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 1_048_576), ("max\n", None)])
def test_in_a_container_it_is_the_containers(
    tools: Path, tmp_path: Path, limit: str, expected: int | None
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit)
    assert device_bytes({}, file) == {"cpu": expected or psutil.virtual_memory().total}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"0": 1}),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, {"1": 2}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_VISIBLE_DEVICES": "cpu"}, {}),
    ],
)
def test_with_a_gpu_it_is_also_that_of_the_one_it_sees(
    tools: Path, environment: dict[str, str], expected: dict[str, int]
) -> None:
    install(tools, 'case "$2" in 0) echo 1;; 1) echo 2;; *) exit 6;; esac')
    found = device_bytes(environment, NOWHERE)
    assert [found[name] for name in found if name == "cuda"] == [
        mebibytes << 20 for mebibytes in expected.values()
    ]


@pytest.mark.parametrize("script", ["exit 9", "echo '[N/A]'"])
def test_a_gpu_that_does_not_tell_is_left_out(tools: Path, script: str) -> None:
    install(tools, script)
    assert set(device_bytes({}, NOWHERE)) == {"cpu"}
