"""The deployments run what the Procfile runs, and name nothing that is not there."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

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


COMPOSE = ROOT / "deploy" / "docker-compose.yml"
GPU = ROOT / "deploy" / "docker-compose.gpu.yml"
DEPLOYMENTS = [
    path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.name != ".env"
]
# Read by the deployments themselves, or by the programs that they start.
OWN_VARIABLES = {
    "BROKER_PASSWORD",
    "CUDA_VISIBLE_DEVICES",
    "DEVICE",
    "HOME",
    "INDEX",
    "PATH",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_NO_CACHE_DIR",
    "PORT",
    "PYTHONUNBUFFERED",
    "RAILWAY_RUN_UID",
    "REDISCLI_AUTH",
    "TORCH_INDEX",
}


def services(path: Path) -> dict[str, dict[str, object]]:
    """The services of a compose file, anchors and merges resolved."""
    found = yaml.safe_load(path.read_text("utf-8"))["services"]
    assert isinstance(found, dict)
    return found


def documented_variables() -> set[str]:
    return set(re.findall(r"^#([A-Z][A-Z_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_compose_has_every_part_of_the_system() -> None:
    assert set(services(COMPOSE)) == {"redis", "migrations", *procfile()}
    assert set(services(GPU)) <= set(services(COMPOSE))


def test_compose_waits_for_services_that_there_are_and_keeps_data_in_volumes() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text("utf-8"))["volumes"]
    assert isinstance(volumes, dict)
    for name, service in services(COMPOSE).items():
        waited_for = service.get("depends_on", {})
        assert isinstance(waited_for, dict)
        assert set(waited_for) <= set(services(COMPOSE)), name
        for needed, condition in waited_for.items():
            if condition["condition"] == "service_healthy":
                healthcheck = services(COMPOSE)[needed]["healthcheck"]
                assert isinstance(healthcheck, dict)
                assert "test" in healthcheck
        mounted = service["volumes"]
        assert isinstance(mounted, list)
        assert {volume.partition(":")[0] for volume in mounted} <= set(volumes)


def test_what_stands_in_the_env_file_arrives_in_every_process_but_for_what_containers_fix() -> None:
    fixed = {"APP__DATA_ROOT", "REDIS__URL"}
    own = {
        "api": {"API__HOST", "API__PORT", "SECURITY__API_KEY"},
        "flower": {"FLOWER__HOST", "FLOWER__PORT", "FLOWER__BASIC_AUTH"},
    }
    for name in {"migrations", *procfile()}:
        service = services(COMPOSE)[name]
        assert service["env_file"] == [{"path": ".env", "required": False}], name
        environment = service["environment"]
        assert isinstance(environment, dict)
        # What is named here wins over the file.
        assert set(environment) == fixed | own.get(name, set()), name
        for variable in ("SECURITY__API_KEY", "FLOWER__BASIC_AUTH"):
            assert variable in environment.get(variable, variable)  # handed through
        for port, inside in (("API__PORT", "8000"), ("FLOWER__PORT", "5555")):
            if port in environment:
                assert environment[port] == inside
                assert service["ports"] == [f"127.0.0.1:${{{port}:-{inside}}}:{inside}"]
    assert "env_file" not in services(COMPOSE)["redis"]
    for service in services(GPU).values():
        assert "env_file" not in service


def test_no_container_can_be_reached_from_other_machines() -> None:
    published: list[str] = []
    for service in services(COMPOSE).values():
        ports = service.get("ports", [])
        assert isinstance(ports, list)
        published += ports
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: path.name)
def test_every_module_that_a_deployment_runs_exists(path: Path) -> None:
    text = path.read_text("utf-8").replace('"', " ").replace(",", " ")
    modules = set(re.findall(r"python\s+-m\s+([\w.]+)", text)) - {"venv"}
    modules |= set(re.findall(r"python:([\w.]+)", text)) - {"3.12"}
    assert {
        name for name in modules if not re.match(r"\d", name) and find_spec(name) is None
    } == set()


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: path.name)
def test_every_variable_that_a_deployment_names_is_read(path: Path) -> None:
    text = path.read_text("utf-8")
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*__[A-Z0-9_]*[A-Z0-9]\b", text))
    named |= set(re.findall(r"\$\{?([A-Z][A-Z_]+)", text))
    named |= set(re.findall(r"^\s*#?([A-Z][A-Z_]+)[=:]", text, re.MULTILINE))
    named.discard("ERROR")  # a word of pip's log
    assert named - documented_variables() - OWN_VARIABLES == set()


def test_what_the_image_copies_and_compose_builds_is_there() -> None:
    built = services(COMPOSE)["migrations"]["build"]
    assert isinstance(built, dict)
    assert (COMPOSE.parent / built["context"] / built["dockerfile"]).is_file()
    assert set(built["args"]) == {"TORCH_INDEX", "GIT_COMMIT"}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert all(f"ARG {name}=" in dockerfile for name in built["args"])
    assert "GIT_COMMIT=$GIT_COMMIT" in dockerfile.rpartition("FROM ")[2]
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    assert [name for name in kept if not (ROOT / name).exists()] == []
    needed = {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "wsgi.py"}
    assert needed <= set(kept)


def test_the_image_leaves_its_build_behind_runs_as_nobody_and_says_whether_it_is_ready() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    *build, last = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    assert build
    assert "COPY --from=build" in last
    assert "COPY . ." not in last
    user = re.search(r"^USER (.+)$", last, re.MULTILINE)
    assert user
    assert (
        f"useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin {user[1]}" in last
    )
    assert last.rpartition("RUN ")[2].count("USER") == 1  # nothing is installed as that user
    assert "/readyz" in last.partition("HEALTHCHECK")[2]


def test_processes_that_compute_and_no_others_get_the_gpus() -> None:
    device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    gpus = {"resources": {"reservations": {"devices": [device]}}}
    assert services(COMPOSE.with_name("docker-compose.gpu.yml")) == {
        "worker": {
            "deploy": gpus,
            "environment": {"DEVICE": "gpu0", "CUDA_VISIBLE_DEVICES": "0"},
        },
        "inference": {"deploy": gpus, "environment": {"CUDA_VISIBLE_DEVICES": "0"}},
        "light": {"deploy": gpus, "environment": {"CUDA_VISIBLE_DEVICES": "0"}},
    }


def test_railway_builds_and_starts_what_there_is() -> None:
    railway = json.loads((ROOT / "deploy" / "railway.json").read_text("utf-8"))
    assert (ROOT / railway["build"]["dockerfilePath"]).is_file()
    assert railway["deploy"]["healthcheckPath"] == "/readyz"
    assert "trainer up --port" in railway["deploy"]["startCommand"]


def test_every_target_of_make_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"start", "stop", "restart", "clean"} <= targets
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md"]
    for page in [*pages, *(ROOT / "docs").glob("*.md")]:
        text = page.read_text("utf-8")
        named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE))
        assert {first or second for first, second in named} <= targets, page.name


def test_make_drives_compose_and_deletes_no_volume() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "start", "stop", "restart", "clean"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for words in (" up --build --detach", " stop", " --force-recreate", " down"):
        assert re.search(rf"docker compose .*{words}", done.stdout)
    assert "volumes" not in done.stdout.replace("--file", "")


def test_the_secrets_that_make_writes_are_random_and_private(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "deploy").mkdir()
    subprocess.run(["make", "deploy/.env"], cwd=tmp_path, check=True, timeout=60)
    file = tmp_path / "deploy" / ".env"
    assert file.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in file.read_text("utf-8").splitlines())
    assert len(values["SECURITY__API_KEY"]) == 48
    assert len({values["SECURITY__API_KEY"], values["BROKER_PASSWORD"]}) == 2


def has_compose() -> bool:
    tool = shutil.which("docker")
    if tool is None:
        return False
    asked = subprocess.run([tool, "compose", "version"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.mark.skipif(not has_compose(), reason="needs docker compose")
@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, GPU]], ids=["cpu", "gpu"])
def test_compose_itself_reads_the_files(files: list[Path], tmp_path: Path) -> None:
    secrets = tmp_path / "env"
    secrets.write_text("SECURITY__API_KEY=a\nBROKER_PASSWORD=b\n")
    named = [argument for file in files for argument in ("-f", str(file))]
    command = ["docker", "compose", "--env-file", str(secrets), *named, "config", "--quiet"]
    subprocess.run(command, check=True, timeout=60)
