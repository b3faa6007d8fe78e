"""The list of processes, and the Procfile that says the same."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from honcho.environ import parse_procfile

from trainer_app import queue
from trainer_app.settings import Settings
from trainer_app.stack.processes import Role, processes

PROCFILE = Path(__file__).parents[2] / "Procfile"


def words(command: str) -> list[str]:
    """A command of the Procfile as a shell hands it to the program."""
    arguments = command.removeprefix("exec ")
    shell = ["sh", "-c", f"printf '%s\\n' {arguments}"]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_procfile_starts_the_same_processes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INDEX", "DEVICE", "CELERY__QUEUE_NAME"):
        monkeypatch.delenv(name, raising=False)
    written = {
        name: words(command)
        for name, command in parse_procfile(PROCFILE.read_text()).processes.items()
    }
    planned = {
        process.name.removesuffix("-0"): ["python", *process.command[1:]]
        for process in processes(settings, gpus=(), with_flower=True)
    }
    assert written == planned


def test_every_command_runs_a_module_that_is_there(settings: Settings) -> None:
    for process in processes(settings, gpus=(), with_flower=True):
        python, flag, module, *_ = process.command
        assert (python, flag) == (sys.executable, "-m")
        assert find_spec(module) is not None


def test_each_gpu_has_a_worker_that_sees_it_alone(settings: Settings) -> None:
    workers = [
        process for process in processes(settings, ("3", "GPU-9a")) if process.role is Role.WORKER
    ]
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["3", "GPU-9a"]
    for index, worker in enumerate(workers):
        own = queue.pinned_queue(settings, f"gpu{index}")
        assert worker.command[-1] == f"{own},{queue.training_queue(settings)}"
        assert f"train-{index}@%h" in worker.command


def test_whatever_uses_models_shares_the_first_gpu_and_the_others_see_none(
    settings: Settings,
) -> None:
    seen = {
        process.role: process.environment["CUDA_VISIBLE_DEVICES"]
        for process in processes(settings, ("3", "4"))
        if process.role is not Role.WORKER
    }
    assert seen == {Role.INFERENCE: "3", Role.API: "", Role.LIGHT: "3", Role.HOUSEKEEPING: ""}


def test_without_a_gpu_one_worker_trains_on_the_cpu(settings: Settings) -> None:
    [worker] = [item for item in processes(settings, ()) if item.role is Role.WORKER]
    assert worker.environment == {"CUDA_VISIBLE_DEVICES": ""}
    assert worker.command[-1].startswith(queue.pinned_queue(settings, "cpu"))
