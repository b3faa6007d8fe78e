"""Every curl command of the documentation, run as it stands against a real stack.

What one answers stands in for the placeholders of the next: ids, as a reader would copy them.
"""

from __future__ import annotations

import json
import random
import string
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.curl_lines import ADDRESS, PAGES, commands, request_of
from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NAMES = {
    "file_id": ["FILE_ID"],
    "tokenizer_id": ["TOKENIZER_ID"],
    "run_id": ["RUN", "RUN_ID"],
    "request_id": ["REQUEST", "REQUEST_ID"],
    "session_id": ["SESSION"],
}
# These need a run that is still going on; all others of a run, one that is completed.
MOVES = ("/cancel", "/pause")
SUCCESS = {"200", "201", "202", "204"}
WAIT_SECONDS = 200.0


def tale() -> bytes:
    """A text that is short, yet gives a tokenizer the thousands of entries that a page asks for."""
    chance = random.Random(0)
    words = ["".join(chance.choices(string.ascii_lowercase, k=8)) for _ in range(4_000)] * 2
    chance.shuffle(words)
    return "".join(" ".join(words[i : i + 8]) + "\n" for i in range(0, 8_000, 8)).encode()


class Reader:
    """Somebody who tries the commands of one page, one after the other."""

    def __init__(self, stack: RunningStack, client: Client, folder: Path) -> None:
        self._stack = stack
        self._client = client
        self._folder = folder
        self._seen: dict[str, str] = {}
        sample = tale()
        for name in ("tale.txt", "corpus.txt"):
            (folder / name).write_bytes(sample)
        corpus_root = stack.data_root / "corpus"
        corpus_root.mkdir(exist_ok=True)
        (corpus_root / "tale.txt").write_bytes(sample)

    def run(self, command: str) -> None:
        """One command; fails unless it answers with success."""
        method, path = request_of(command)
        if path.endswith(MOVES):
            self._see({"run_id": self._start()})
        command = ADDRESS.sub(lambda match: self._stack.api_url + (match[1] or ""), command)
        for name in sorted(self._seen, key=len, reverse=True):
            command = command.replace(f"${name}", self._seen[name])
            command = command.replace(name, self._seen[name])
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"curl() {{ command curl -m 60 -w '\\n%{{http_code}}' \"$@\"; }}\n{command}",
            ],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        body, _, status = done.stdout.rpartition("\n")
        assert done.returncode == 0, (command, done.stderr)
        assert status in SUCCESS, (command, done.stdout)
        if method == "POST":
            self._see(json.loads(body))
            self._wait(path, json.loads(body))

    def _see(self, body: dict[str, object]) -> None:
        for field, names in NAMES.items():
            if isinstance(body.get(field), str):
                self._seen |= dict.fromkeys(names, str(body[field]))

    def _wait(self, path: str, body: dict[str, object]) -> None:
        """As a reader does before the next command: until what was asked for is there."""
        if path == "/tokenizers/train":
            self._client.wait_for_tokenizer(str(body["tokenizer_id"]), timeout=WAIT_SECONDS)
        elif path == "/runs/train" or path.endswith("/resume"):
            run = self._client.wait_for_run(self._seen["RUN"], timeout=WAIT_SECONDS)
            assert run["status"] == "completed", run
        elif path.endswith("/pause"):
            self._until_stopped()
        elif path.endswith(("/generate", "/score", "/chat")):
            give_up_at = time.monotonic() + WAIT_SECONDS
            address = path.replace("$RUN", self._seen["RUN"]).replace("RUN_ID", self._seen["RUN"])
            session = f"/{self._seen['SESSION']}" if path.endswith("/chat") else ""
            while self._status(f"{address}{session}/{self._seen['REQUEST']}") != "completed":
                assert time.monotonic() < give_up_at
                time.sleep(0.2)
        elif path.endswith("/evaluate"):
            give_up_at = time.monotonic() + WAIT_SECONDS
            while self._status(f"/runs/{self._seen['RUN']}/eval?split=test") != "completed":
                assert time.monotonic() < give_up_at
                time.sleep(0.2)

    def _start(self) -> str:
        """A run that takes a while."""
        return self._client.train_run(
            {
                "model_family": "char_lstm",
                "model_size": "tiny",
                "corpus_path": "tale.txt",
                "max_seq_len": 32,
                "max_steps": 150,
                "holdout_fraction": 0.1,
            }
        )["run_id"]

    def _until_stopped(self) -> None:
        give_up_at = time.monotonic() + WAIT_SECONDS
        while self._client.get_run(self._seen["RUN"])["status"] == "running":
            assert time.monotonic() < give_up_at
            time.sleep(0.2)

    def _status(self, path: str) -> str:
        answer = httpx.get(f"{self._stack.api_url}{path}", timeout=30)
        status: str = answer.json().get("status", "")
        return status


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if commands(page)],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_every_command_of_a_page_does_what_it_is_shown_for(
    stack: RunningStack, client: Client, tmp_path: Path, page: Path
) -> None:
    reader = Reader(stack, client, tmp_path)
    for command in commands(page):
        reader.run(command)
