"""Flower beside a stack: our workers with their queues, for whoever has the password."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.curl_lines import FLOWER, PAGES, commands
from trainer_app.errors import SettingsError
from trainer_app.settings import Settings
from trainer_app.stack import flower
from trainer_app.stack.launch import RunningStack, running_stack
from trainer_app.stack.ports import local_url
from trainer_app.stack.up import up

PATIENCE_SECONDS = 90.0  # for the workers to have told Flower of themselves
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if "__" in name:
                patch.delenv(name)
        with running_stack(
            tmp_path_factory.mktemp("flower"),
            # What opens Flower's API to everybody, but for the password.
            environment={"FLOWER_UNAUTHENTICATED_API": "true", "APP__THREADS": "1"},
            options=("--flower", "--flower-port", "0"),
        ) as stack:
            yield stack


@pytest.fixture
def auth(stack: RunningStack) -> tuple[str, str]:
    user, _, password = (stack.data_root / "run" / "flower.auth").read_text().partition(":")
    return user, password


@pytest.fixture
def client(stack: RunningStack) -> Iterator[httpx.Client]:
    url = stack.state["flower_url"]
    assert url is not None
    with httpx.Client(base_url=url, timeout=10.0, trust_env=False) as client:
        until_it_answers(client)
        yield client


def until_it_answers(client: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            client.get("/healthcheck")
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError


def queues_by_worker(client: httpx.Client, auth: tuple[str, str]) -> dict[str, list[str]]:
    answer = client.get("/api/workers", params={"refresh": "1"}, auth=auth)
    if answer.status_code != 200:  # while no worker has answered yet
        return {}
    return {
        name.partition("@")[0]: [queue["name"] for queue in worker.get("active_queues", [])]
        for name, worker in answer.json().items()
    }


@pytest.mark.slow
def test_its_api_lists_our_workers_with_their_queues(
    client: httpx.Client, auth: tuple[str, str]
) -> None:
    expected = {
        "train-0": [f"trainer.{os.uname().nodename}.cpu", "trainer"],
        "infer": ["trainer.inference"],
        "light": ["trainer.light"],
    }
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := queues_by_worker(client, auth)) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


@pytest.mark.slow
def test_the_command_of_the_documentation_lists_the_workers(
    stack: RunningStack, client: httpx.Client
) -> None:
    [command] = [line for page in PAGES for line in commands(page, FLOWER)]
    url = str(client.base_url).rstrip("/")
    command = FLOWER.sub(lambda match: url + match[1], command)
    command = command.replace("data/run", f"{stack.data_root}/run")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
        )
        workers = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        if {name.partition("@")[0] for name in workers} == {"train-0", "infer", "light"}:
            return
        assert time.monotonic() < deadline, (done.stdout, done.stderr)
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/api/workers", "/api/tasks"])
def test_nobody_looks_at_it_without_the_password(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, auth=("trainer", "wrong")).status_code == 401


@pytest.mark.slow
def test_the_ready_line_and_the_state_say_where_it_is(stack: RunningStack) -> None:
    url = stack.state["flower_url"]
    assert f"\nready  {stack.api_url}  (docs at /docs, Flower at {url})\n" in (
        stack.output.read_text()
    )
    assert url is not None
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_it_listens_to_this_machine_alone_and_keeps_the_password_off_its_command_line(
    stack: RunningStack, client: httpx.Client, auth: tuple[str, str]
) -> None:
    pid = stack.state["pids"]["flower"]
    assert pid is not None
    process = psutil.Process(pid)
    listening = {
        connection.laddr.ip
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert auth[1] not in " ".join(process.cmdline())


@pytest.mark.slow
def test_the_password_is_said_once_and_kept_for_its_owner(
    stack: RunningStack, auth: tuple[str, str]
) -> None:
    file = stack.data_root / "run" / "flower.auth"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stack.output.read_text().count(auth[1]) == 1


def test_a_password_that_was_made_up_stays(settings: Settings) -> None:
    said: list[str] = []
    made = flower.credentials(settings, said.append)
    assert flower.credentials(settings, said.append) == made
    assert len(said) == 1
    assert made in said[0]


def test_a_password_of_the_settings_is_taken_and_written_nowhere(settings: Settings) -> None:
    chosen = replace(settings, flower=replace(settings.flower, basic_auth="one:secret,two:word"))
    assert flower.credentials(chosen, pytest.fail) == "one:secret,two:word"
    assert not flower.auth_file(chosen).exists()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5555"),
        ("0.0.0.0", "http://127.0.0.1:5555"),
        ("::1", "http://[::1]:5555"),
        ("::", "http://[::1]:5555"),
    ],
)
def test_an_address_becomes_a_url_that_works_on_this_machine(host: str, url: str) -> None:
    assert local_url(host, 5555) == url


def test_without_the_package_it_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run_without_flower(
        "-c",
        "import sys; sys.argv[1:] = ['up', '--flower', '--port', '0', "
        f"'--data-root', {str(tmp_path)!r}]; from trainer_app.cli.main import main; main()",
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --flower: needs Flower: pip install -c constraints.txt -e '.[flower]'\n"
    )
    assert [*tmp_path.iterdir()] == []


def test_by_itself_it_says_the_same(tmp_path: Path) -> None:
    done = run_without_flower("-m", "trainer_app.stack.flower")
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: --flower: needs Flower: pip install -c constraints.txt -e '.[flower]'\n"
    )


def run_without_flower(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the package cannot be found, as without the extra."""
    code = (
        "import importlib.util as util, runpy, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'flower' else find(name, *more)\n"
    )
    if arguments[0] == "-m":
        code += f"runpy.run_module({arguments[1]!r}, run_name='__main__')"
    else:
        code += arguments[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_that_is_taken_is_refused_by_name(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = replace(settings.api, port=0)
        wanted = replace(settings, api=api, flower=replace(settings.flower, port=port))
        with pytest.raises(SettingsError, match=rf"^FLOWER__PORT: {port} is in use"):
            up(wanted, with_flower=True)
