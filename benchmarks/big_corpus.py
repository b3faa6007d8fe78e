"""One line of a gigabyte: uploaded, tokenized and trained on, in bounded memory.

    python -m benchmarks.big_corpus [--megabytes 1000] [--data-root DIR]

Starts a stack of its own, makes the line while it is sent, and prints one JSON object: seconds of
each phase, and the peak of the resident memory of each process while it worked; on standard error
the same as each phase ends.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from trainer_app.client import Client
from trainer_app.stack.launch import RunningStack, running_stack

WORDS = 20_000
WORDS_A_BLOCK = 50_000
WAIT_SECONDS = 3_600.0
LIMIT_BYTES = 2_000_000_000


class Peaks:
    """Watches the resident memory of the stack's processes, children included."""

    def __init__(self, stack: RunningStack) -> None:
        self.bytes: dict[str, int] = {}
        self._stack = stack
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for started in self._stack.state["processes"]:
                self._look(started["name"], started["pid"])

    def _look(self, name: str, pid: int) -> None:
        try:
            parent = psutil.Process(pid)
            family = [parent, *parent.children(recursive=True)]
            # Pages that processes share are counted in each: the sum is an upper bound.
            total = sum(process.memory_info().rss for process in family)
        except psutil.NoSuchProcess:
            return
        self.bytes[name] = max(self.bytes.get(name, 0), total)

    def megabytes(self) -> dict[str, int]:
        return {name: value // 1_000_000 for name, value in sorted(self.bytes.items())}

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def line(megabytes: int) -> Iterator[bytes]:
    """Words of a made-up language, some much more common than others, and no newline."""
    chance = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = [
        "".join(chance.choices(letters, weights=range(26, 0, -1), k=chance.randint(2, 9)))
        for _ in range(WORDS)
    ]
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    left = megabytes * 1_000_000
    while left > 0:
        block = " ".join([*chance.choices(words, weights, k=WORDS_A_BLOCK), ""]).encode()[:left]
        left -= len(block)
        yield block


def upload(stack: RunningStack, megabytes: int) -> str:
    answer = httpx.post(
        f"{stack.api_url}/corpora",
        content=line(megabytes),
        headers={"Content-Type": "text/plain"},
        timeout=WAIT_SECONDS,
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["lines"] == 1
    file_id: str = answer.json()["file_id"]
    return file_id


def measure(stack: RunningStack, megabytes: int) -> dict[str, object]:
    seconds: dict[str, float] = {}
    peaks = Peaks(stack)

    def ended(phase: str, began: float) -> None:
        seconds[phase] = round(time.monotonic() - began, 1)
        print(phase, seconds[phase], "s", peaks.megabytes(), file=sys.stderr, flush=True)

    with Client(stack.api_url, timeout=WAIT_SECONDS) as client:
        began = time.monotonic()
        corpus = upload(stack, megabytes)
        ended("upload", began)
        began = time.monotonic()
        tokenizer = client.train_tokenizer(
            {"method": "bpe", "vocab_size": 1_000, "corpus_file_id": corpus}
        )["tokenizer_id"]
        trained = client.wait_for_tokenizer(tokenizer, timeout=WAIT_SECONDS)
        assert trained["status"] == "completed", trained
        ended("tokenizer", began)
        began = time.monotonic()
        run_id = client.train_run(
            {
                "model_size": "tiny",
                "corpus_file_id": corpus,
                "tokenizer_id": tokenizer,
                "max_seq_len": 128,
                "batch_size": 8,
                "max_steps": 10,
                "test_split_ratio": 0.001,
                "holdout_fraction": 0.001,
            }
        )["run_id"]
        run = client.wait_for_run(run_id, timeout=WAIT_SECONDS)
        assert run["status"] == "completed", run
        ended("run", began)
    peaks.close()
    return {
        "megabytes": megabytes,
        "seconds": seconds,
        "peak_megabytes": peaks.megabytes(),
        "within_2_gb_each": max(peaks.bytes.values()) < LIMIT_BYTES,
        "val_loss": run["val_loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data_root or Path(folder)
        with running_stack(root) as stack:
            print(json.dumps(measure(stack, arguments.megabytes), indent=2))


if __name__ == "__main__":
    main()
