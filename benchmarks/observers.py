"""What a training loop loses to those who watch it in the service.

    python -m benchmarks.observers [--rounds 5] [--steps 10000] [--logging-steps 10]
        [--device cpu] [--width 16] [--layers 1] [--seq-len 8] [--batch-size 1]

A GPT-2, by default so small that the loop takes about as many steps a second as a CPU allows, is
trained by ``fit``, in turn with nobody watching and with what a run of the service has: its lease,
log, journal, row and events, on a SQLite file and a broker of the stack's own kind. Prints a JSON
line a round, then a table with medians, of the steps between the first report and the last (what
comes before and after is no part of it, and there are no checkpoints): steps a second, and
microseconds of a step by the wall, and of CPU time: of the training thread in calls to observers,
of that thread in all, and of all threads of the process.

So is the loss in percent. By the wall: what a user sees, on a machine that does nothing else. By
calls: what the loop does itself for its observers; other work on the machine hardly moves it. By
the thread: that, and what it costs to share caches and Python's lock with their threads. Of all
threads: the share of one core that they take for it, by time and not by step, mostly beside the
training; where a core is free, that costs it little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from backends.contracts import ModelConfig
from backends.loading import model_family, tokenizer_kind
from backends.models.gpt2 import DESIGN, gpt2_shape
from backends.models.transformer import Transformer
from tasks.held import Held
from tasks.journal import Journal
from tasks.reporting import EventReporter, LogReporter, RowReporter
from trainer_app import events
from trainer_app.core.fit import fit
from trainer_app.core.observer import Observer, Observers, Silent, StepReport, StopReason
from trainer_app.core.run_files import Finished, Inputs, Workspace
from trainer_app.core.spec import DEVICES, RequestedDevice, TrainSpec
from trainer_app.events import JobEvents, Publisher
from trainer_app.log import JobLog, job_log_path
from trainer_app.settings import Settings, load_settings
from trainer_app.stack import broker
from trainer_app.store import lease, migrate, runs
from trainer_app.store.database import Database
from trainer_app.store.tables import Status

TITLES: Final = ("wall, us", "calls, us", "thread, us", "all, us")
_NEVER: Final = 1e9  # seconds between checkpoints


class Args(argparse.Namespace):
    """The command line."""

    rounds: int
    steps: int
    logging_steps: int
    device: RequestedDevice
    width: int
    layers: int
    seq_len: int
    batch_size: int


class Stopwatch(Observers):
    """Times the steps between the first report and the last, and the calls to the observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        super().__init__(observers)
        self._in_calls = 0.0
        self._began: tuple[float, ...] | None = None
        self._ended: tuple[float, ...] = ()

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        began = time.thread_time()
        super().on_steps(steps)
        thread = time.thread_time()
        self._in_calls += thread - began
        self._ended = (
            steps[-1].step,
            time.perf_counter(),
            self._in_calls,
            thread,
            time.process_time(),
        )
        self._began = self._began or self._ended

    def should_stop(self) -> StopReason | None:
        began = time.thread_time()
        reason = super().should_stop()
        self._in_calls += time.thread_time() - began
        return reason

    def per_step(self) -> Cost:
        """Of the steps timed."""
        assert self._began is not None
        steps, *seconds = (b - a for a, b in zip(self._began, self._ended, strict=True))
        wall, calls, thread, cpu = (1e6 * value / steps for value in seconds)
        return Cost(wall_us=wall, calls_us=calls, thread_us=thread, cpu_us=cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Microseconds that a step takes."""

    wall_us: float
    calls_us: float  # CPU time of the training thread in calls to observers
    thread_us: float  # and in all
    cpu_us: float  # of all threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Percent that the watched run loses against the silent one."""

    by_wall: float
    by_calls: float
    by_thread: float
    of_a_core: float  # that all threads take more

    @classmethod
    def of(cls, watched: Cost, silent: Cost) -> Loss:
        return cls(
            by_wall=100 * (1 - silent.wall_us / watched.wall_us),
            by_calls=100 * (watched.calls_us - silent.calls_us) / watched.thread_us,
            by_thread=100 * (1 - silent.thread_us / watched.thread_us),
            of_a_core=100 * (watched.cpu_us - silent.cpu_us) / watched.wall_us,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A folder to train in, and the service's parts that a worker has."""

    folder: Path
    settings: Settings
    database: Database
    spec: TrainSpec

    def silent(self, name: str) -> Cost:
        """A run that nobody watches."""
        watch = Stopwatch([Silent()])
        self._fit(name, watch)
        return watch.per_step()

    def watched(self) -> Cost:
        """A run with all that tasks/training.py gives it."""
        run_id = runs.create(self.database, self.spec, queue="trainer").run_id
        claim = lease.claim(
            self.database,
            run_id,
            "benchmark",
            lease_seconds=self.settings.jobs.lease_seconds,
        )
        assert claim is not None
        with (
            closing(events.connect(self.settings)) as client,
            closing(Publisher(client)) as publisher,
            closing(JobLog(job_log_path(self.settings, run_id), run_id=run_id)) as log,
            Held(self.database, client, self.settings.jobs, claim) as held,
            closing(RowReporter(self.database, claim, held)) as rows,
            closing(Journal(self._run(run_id), self.database, claim)) as journal,
        ):
            told = EventReporter(
                JobEvents(publisher, job_id=run_id, user_id=0, queue_name=claim.queue)
            )
            watch = Stopwatch([held, LogReporter(log, claim), journal, rows, told])
            self._fit(run_id, watch)
        lease.finish(self.database, claim, Status.COMPLETED)
        return watch.per_step()

    def _run(self, name: str) -> Path:
        return self.settings.paths.runs / name

    def _fit(self, name: str, observer: Observer) -> None:
        workspace = Workspace(
            run=self._run(name),
            tokens=self.folder / "tokens",
            attempt=1,
            checkpoint_seconds=_NEVER,
            max_threads=1,  # nothing is large enough to be shared
        )
        inputs = Inputs(corpus=self.folder / "corpus.txt", base_model=self.folder / "base")
        assert isinstance(fit(self.spec, inputs, workspace, observer), Finished)


@contextmanager
def bench(folder: Path, options: Args) -> Iterator[Bench]:
    """A migrated database, a broker, and a model smaller than those that have names."""
    queue = broker.configure(folder)
    os.environ |= {
        "APP__DATA_ROOT": str(folder),
        "REDIS__URL": queue.url,
        "LOGGING__LEVEL": "WARNING",
    }
    settings = load_settings()
    migrate.upgrade(settings.database_url)

    words = random.Random(0)
    lines = [" ".join(words.choices(("an", "old", "sea", "tree"), k=40)) for _ in range(4_000)]
    text = "\n".join(lines)
    (folder / "corpus.txt").write_text(text)
    (folder / "base").mkdir()
    tokenizer = tokenizer_kind("char").train(lines, vocab_size=100, min_frequency=1)
    tokenizer.save(folder / "base")
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            family="gpt2",
            size="custom",
            vocab_size=tokenizer.vocab_size,
            max_seq_len=options.seq_len,
        ),
        DESIGN,
        gpt2_shape(width=options.width, layers=options.layers, heads=max(1, options.width // 64)),
    )
    model.initialise()
    model_family("gpt2").save(model, folder / "base")
    spec = TrainSpec(
        device=options.device,
        precision="fp32" if options.device == "cpu" else "bf16",
        torch_compile="off",
        model_size="custom",
        max_seq_len=options.seq_len,
        batch_size=options.batch_size,
        max_steps=options.steps,
        logging_steps=options.logging_steps,
        holdout_fraction=0.0,
        test_split_ratio=0.0,
        corpus_sha256=sha256(text.encode()).hexdigest(),
    )
    server = subprocess.Popen(queue.command, stdout=subprocess.DEVNULL)
    try:
        broker.wait_until_it_answers(queue.url, timeout_seconds=30)
        with closing(Database(settings.database_url)) as database:
            yield Bench(folder=folder, settings=settings, database=database, spec=spec)
    finally:
        server.terminate()
        server.wait(30)


def one_round(made: Bench, number: int) -> tuple[Cost, Cost]:
    """Silent and watched; which of them is first changes from round to round."""
    if number % 2:
        watched = made.watched()
        return made.silent(f"silent-{number}"), watched
    return made.silent(f"silent-{number}"), made.watched()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000, help="of each run")
    parser.add_argument("--logging-steps", type=int, default=10, help="a point every so many")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=8, help="the least that a run may have")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args(namespace=Args())
    pairs = []
    with TemporaryDirectory() as place, bench(Path(place), options) as made:
        warm = replace(made, spec=replace(made.spec, max_steps=max(2, options.steps // 10)))
        one_round(warm, -1)  # libraries are loaded and the corpus is tokenized by then
        for number in range(options.rounds):
            silent, watched = one_round(made, number)
            pairs.append((silent, watched))
            row = {
                "round": number,
                "silent": rounded(silent),
                "watched": rounded(watched),
                "lost_percent": rounded(Loss.of(watched, silent)),
            }
            print(json.dumps(row), flush=True)
    print(f"\n{'medians':10}{'steps/s':>9}" + "".join(f"{title:>12}" for title in TITLES))
    for name, costs in zip(("silent", "watched"), zip(*pairs, strict=True), strict=True):
        figures = medians(costs)
        print(f"{name:10}{1e6 / figures[0]:9,.0f}" + "".join(f"{us:12,.1f}" for us in figures))
    lost = medians([Loss.of(watched, silent) for silent, watched in pairs])
    print(f"{'lost, %':19}" + "".join(f"{percent:12.2f}" for percent in lost))


def rounded(figures: Cost | Loss) -> dict[str, float]:
    """For a JSON line."""
    return {name: round(value, 2) for name, value in asdict(figures).items()}


def medians(rows: Sequence[Cost | Loss]) -> list[float]:
    """Of each of their figures."""
    values = [asdict(row).values() for row in rows]
    return [statistics.median(column) for column in zip(*values, strict=True)]


if __name__ == "__main__":
    main()
