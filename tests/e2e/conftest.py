"""The whole stack, as a user starts it: real broker, real workers, real HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for the tests of this process that leave it as it was."""
    for name in list(os.environ):
        if name.startswith(("REDIS__", "DATABASE__", "APP__", "JOBS__", "CELERY__")):
            del os.environ[name]
    root = tmp_path_factory.mktemp("stack")
    with running_stack(root, environment={"APP__THREADS": "1"}) as stack:
        yield stack


@pytest.fixture
def client(stack: RunningStack) -> Iterator[Client]:
    """Speaks to the stack."""
    with Client(stack.api_url) as client:
        yield client


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some English that every machine has: the standard library's own documentation strings."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
    source = Path(os.__file__).parent
    names = ("argparse.py", "decimal.py", "difflib.py", "doctest.py", "inspect.py", "typing.py")
    path.write_bytes(b"".join((source / name).read_bytes() for name in names))
    return path


@pytest.fixture(scope="session")
def trained(stack: RunningStack, text: Path) -> tuple[str, str]:
    """A tokenizer and a small GPT-2, trained once for the tests that only look and ask."""
    with Client(stack.api_url) as client:
        corpus = client.upload_corpus(text)
        tokenizer = client.train_tokenizer(
            {"method": "bpe", "vocab_size": 512, "corpus_file_id": corpus["file_id"]}
        )
        tokenizer_id = tokenizer["tokenizer_id"]
        done = client.wait_for_tokenizer(tokenizer_id, timeout=90)
        assert done["status"] == "completed", done
        accepted = client.train_run(
            {
                "model_size": "tiny",
                "corpus_file_id": corpus["file_id"],
                "tokenizer_id": tokenizer_id,
                "max_seq_len": 64,
                "batch_size": 16,
                "max_steps": 150,
                "learning_rate": 3e-3,
                "eval_steps": 75,
                "user_id": 7,
                "tags": ["e2e"],
            }
        )
        run = client.wait_for_run(accepted["run_id"], timeout=90)
        assert run["status"] == "completed", run
        return tokenizer_id, accepted["run_id"]
