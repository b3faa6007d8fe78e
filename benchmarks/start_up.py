"""How soon a run begins, one JSON line a figure.

    python -m benchmarks.start_up [--runs 20] [--family gpt2] [--data-root DIR]

Starts a stack of its own, trains a small tokenizer and one run that warms the worker and tokenizes
the corpus. Then come so many runs of a few steps, first one after another, each posted when the
worker is idle: from the POST to the news of the first step. Then as many posted at once, which the
worker takes one after another: from the news of the end of one to that of the first step of the
next, and from the first POST to the last end. News are events on Redis, as a bot hears them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import redis

from trainer_app.client import Client
from trainer_app.events import STREAM
from trainer_app.stack.launch import running_stack

_SECONDS: Final = 300.0  # for anything to happen
_LOOK_SECONDS: Final = 0.002  # between two looks for news
_STEPS: Final = 5
_FIRST_STEP: Final = "trainer.metrics.progress.v1"
_END: Final = "trainer.metrics.completed.v1"


class Args(argparse.Namespace):
    """The command line."""

    runs: int
    family: str
    data_root: Path | None


class News:
    """When what was heard of which run, by the clock of this process."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._after = "0"
        self.first_step: dict[str, float] = {}
        self.end: dict[str, float] = {}

    def wait_for_end(self, run_id: str) -> None:
        """Listen until the run has completed; raises TimeoutError where it does not."""
        give_up_at = time.monotonic() + _SECONDS
        while run_id not in self.end:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{run_id} has not completed within {_SECONDS:.0f} s")
            for entry_id, fields in self._redis.xrange(STREAM, min=f"({self._after}") or []:
                self._after = str(entry_id)
                if fields:
                    self._hear(json.loads(fields["event"]))
            time.sleep(_LOOK_SECONDS)

    def _hear(self, event: dict[str, object]) -> None:
        now, run_id = time.monotonic(), str(event["job_id"])
        if event["type"] == _FIRST_STEP:
            self.first_step.setdefault(run_id, now)
        elif event["type"] == _END:
            self.end[run_id] = now


class Bench:
    """A stack with a warm worker and a tokenized corpus."""

    def __init__(self, client: Client, family: str) -> None:
        self._client = client
        path = Path(os.__file__).parent / "argparse.py"
        corpus = client.upload_corpus(path)["file_id"]
        fields = {"method": "bpe", "vocab_size": 512, "corpus_file_id": corpus}
        tokenizer = client.train_tokenizer(fields)["tokenizer_id"]
        done = client.wait_for_tokenizer(tokenizer, timeout=_SECONDS)
        assert done["status"] == "completed", done
        self._body = {
            "model_family": family,
            "model_size": "tiny",
            "corpus_file_id": corpus,
            "tokenizer_id": tokenizer,
            "max_seq_len": 64,
            "batch_size": 4,
            "max_steps": _STEPS,
            "test_split_ratio": 0.01,
        }

    def post(self) -> str:
        return self._client.train_run(self._body)["run_id"]


@contextmanager
def bench(root: Path, family: str) -> Iterator[tuple[Bench, News]]:
    """The stack, and what is heard of it; a run has gone before."""
    with (
        running_stack(root) as stack,
        Client(stack.api_url) as client,
        redis.Redis.from_url(stack.state["redis_url"], decode_responses=True) as broker,
    ):
        news = News(broker)
        made = Bench(client, family)
        news.wait_for_end(made.post())
        yield made, news


def alone(made: Bench, news: News, runs: int) -> tuple[list[float], list[float]]:
    """Seconds from the POST to the first step, and to the end, of runs one after another."""
    starts, ends = [], []
    for _ in range(runs):
        posted_at = time.monotonic()
        run_id = made.post()
        news.wait_for_end(run_id)
        starts.append(news.first_step[run_id] - posted_at)
        ends.append(news.end[run_id] - posted_at)
    return starts, ends


def queued(made: Bench, news: News, runs: int) -> tuple[list[float], float]:
    """Seconds from the end of a run to the first step of the next, of runs posted at once; and
    those that all of them took.
    """
    posted_at = time.monotonic()
    ids = [made.post() for _ in range(runs)]
    for run_id in ids:
        news.wait_for_end(run_id)
    order = sorted(ids, key=lambda run_id: news.end[run_id])
    gaps = [news.first_step[after] - news.end[before] for before, after in pairwise(order)]
    return gaps, news.end[order[-1]] - posted_at


def report(figure: str, seconds: list[float]) -> str:
    """Print a JSON line, and give the row of the table."""
    worst, median = max(seconds), statistics.median(seconds)
    print(
        json.dumps(
            {"figure": figure, "unit": "s", "median": median, "max": worst, "of": len(seconds)}
        ),
        flush=True,
    )
    return f"{figure:36}{median:9.3f}{worst:9.3f}"


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--family", default="gpt2")
    parser.add_argument("--data-root", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args(namespace=Args())
    if arguments.runs < 2:
        parser.error("--runs: at least 2, for there is time between two alone")
    with TemporaryDirectory() as temporary:
        root = arguments.data_root or Path(temporary)
        with bench(root, arguments.family) as (made, news):
            starts, ends = alone(made, news, arguments.runs)
            gaps, total = queued(made, news, arguments.runs)
    rows = [
        report("POST to first step", starts),
        report(f"POST to the end of {_STEPS} steps", ends),
        report("end to first step of the next", gaps),
        report(f"all {arguments.runs}, posted at once", [total]),
    ]
    print(f"\n{'seconds':36}{'median':>9}{'max':>9}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
