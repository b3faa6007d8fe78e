"""The deployments run what the Procfile runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "deploy" / "systemd"


def procfile() -> dict[str, str]:
    """The command of each process."""
    text = (ROOT / "Procfile").read_text("utf-8")
    return dict(re.findall(r"^(\w+): (.+)$", text, flags=re.MULTILINE))


def python_command(text: str) -> str:
    """What is run with python -m, up to where names begin that differ between deployments."""
    match = re.search(r"python -m (.+)", text.replace('"', " ").replace(",", " "))
    assert match, text
    return " ".join(re.split(r"--hostname|['\]]", match[1])[0].split())


@pytest.mark.parametrize("process", procfile())
def test_each_process_has_a_unit_with_the_same_command(process: str) -> None:
    name = f"model-trainer-{process}{'@' * (process == 'worker')}.service"
    unit = (UNITS / name).read_text("utf-8")
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert python_command(command) == python_command(procfile()[process])


@pytest.mark.parametrize("process", procfile())
def test_each_process_has_a_container_with_the_same_command(process: str) -> None:
    compose = (ROOT / "deploy" / "docker-compose.yml").read_text("utf-8")
    service = re.split(r"\n  (?=\w)", compose.partition("\nservices:")[2])
    section = next(text for text in service if text.startswith(f"{process}:"))
    command = next(line for line in section.splitlines() if line.strip().startswith("command:"))
    command = command.replace('"python", "-m", ', "python -m ")
    assert python_command(command) == python_command(procfile()[process])


def test_the_target_wants_every_unit_that_there_is_one_of() -> None:
    target = (UNITS / "model-trainer.target").read_text("utf-8")
    single = {path.name for path in UNITS.glob("*.service") if "@" not in path.name}
    assert set(re.findall(r"model-trainer-\w+\.service", target)) == single
