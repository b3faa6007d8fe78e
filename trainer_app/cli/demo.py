"""``trainer demo``: the whole system at work, spoken to over HTTP as any client would."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from trainer_app.cli.demo_corpus import write_corpus
from trainer_app.cli.exits import Exit
from trainer_app.cli.tables import duration, printable, short, size, table
from trainer_app.cli.watch import follow, summary
from trainer_app.client import Client
from trainer_app.errors import TrainerError
from trainer_app.replies import Corpus, Run, Tokenizer
from trainer_app.stack.launch import RunningStack, start_stack
from trainer_app.transport import ApiError

VOCAB_SIZE: Final = 4_096
SEQ_LEN: Final = 64  # tokens
BATCH_SIZE: Final = 16  # sequences
PROBE_STEPS: Final = 40  # to learn how fast this machine is
MAX_EPOCHS: Final = 4.0  # a fast machine needs no two minutes to see the text this often
# Of 24 tried (tiny and mini; 32 to 256 tokens; 4 to 32 sequences; 2e-3 to 8e-3), the one with the
# lowest validation loss after two minutes on 2 CPU cores, but for a context of 32 tokens.
RECIPE: Final = {
    "model_family": "gpt2",
    "model_size": "tiny",
    "max_seq_len": SEQ_LEN,
    "batch_size": BATCH_SIZE,
    "learning_rate": 4e-3,
    "warmup_ratio": 0.05,
    "num_epochs": 1_000,  # max_steps ends it
    "holdout_fraction": 0.005,
    "test_split_ratio": 0.01,
    "early_stopping_patience": 0,
    "seed": 42,
}
PROMPTS: Final = (
    "def read_file(path):\n",
    "class Point:\n    def __init__(self, ",
    "import os\nimport sys\n\n",
)
# The demo brings all that it needs: what is set for another stack must not reach this one.
_OTHERS: Final = (
    "API_GATEWAY_URL",
    "API__HOST",
    "APP__ARTIFACTS_ROOT",
    "APP__CORPUS_ROOT",
    "APP__DATA_BANK_API_URL",
    "APP__LOGS_ROOT",
    "APP__RUNS_ROOT",
    "DATABASE__URL",
    "REDIS__ENABLED",
    "REDIS__URL",
    "SECURITY__API_KEY",
    "SECURITY__RATE_LIMIT",
)
_TOKENIZER_SECONDS: Final = 600.0
_PROBE_SECONDS: Final = 600.0


class _Failed(TrainerError):
    """A step of the demo did not end as it should."""


def demo(data_root: Path, *, minutes: float, keep: bool) -> Exit:
    """Start a stack, train on it, show what came of it, and stop it again.

    Returns FAILED, after having said what failed and where its log is, or INTERRUPTED.
    """
    console = Console(soft_wrap=True, highlight=False)
    stack: RunningStack | None = None
    started = time.monotonic()
    try:
        with _step(console, "start the stack: broker, database, API, workers"):
            stack = start_stack(data_root, environment=dict.fromkeys(_OTHERS))
        with Client(stack.api_url) as client:
            run = _Demo(client, console, data_root, minutes).run()
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        keep = False
        return Exit.INTERRUPTED
    except (TrainerError, ApiError) as error:
        console.print(f"\nfailed: {error}", markup=False)
        console.print(f"  logs of the runs:  {data_root / 'logs'}", markup=False)
        console.print(f"  logs of the stack: {data_root / 'run' / 'logs'}", markup=False)
        keep = False
        return Exit.FAILED
    finally:
        if stack is not None and not keep:
            with _step(console, "stop the stack"):
                stack.stop()
    _what_next(console, stack, run, data_root, keep=keep)
    console.print(f"all of it took {duration(time.monotonic() - started)}")
    return Exit.COMPLETED


class _Demo:
    def __init__(self, client: Client, console: Console, data_root: Path, minutes: float) -> None:
        self._client = client
        self._console = console
        self._data_root = data_root
        self._minutes = minutes

    def run(self) -> Run:
        """All that needs the stack."""
        corpus = self._upload()
        tokenizer = self._train_tokenizer(corpus["file_id"])
        inputs = {
            "corpus_file_id": corpus["file_id"],
            "tokenizer_id": tokenizer["tokenizer_id"],
        }
        steps, untrained = self._plan(inputs, corpus, tokenizer)
        run = self._train(inputs, steps)
        self._compare(untrained, run)
        self._complete(run)
        return run

    def _upload(self) -> Corpus:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "stdlib.txt")
            with _step(self._console, "gather the source of Python's standard library"):
                text = write_corpus(path)
            bar = Progress(
                TextColumn("  upload it"), BarColumn(24), DownloadColumn(), console=self._console
            )
            with bar as progress:
                task = progress.add_task("", total=text.bytes)
                corpus = self._client.upload_corpus(
                    path, on_progress=lambda sent: progress.update(task, completed=sent)
                )
        figures = f"{text.files:,} files, {size(corpus['bytes'])}, {corpus['lines']:,} lines"
        self._console.print(f"  {figures}", style="dim")
        return corpus

    def _train_tokenizer(self, file_id: str) -> Tokenizer:
        with _step(self._console, f"train a byte-level BPE of {VOCAB_SIZE:,} entries"):
            accepted = self._client.train_tokenizer(
                {"method": "bpe", "vocab_size": VOCAB_SIZE, "corpus_file_id": file_id}
            )
            tokenizer = self._client.wait_for_tokenizer(
                accepted["tokenizer_id"], timeout=_TOKENIZER_SECONDS
            )
        _check("the tokenizer", tokenizer["status"], tokenizer["error"])
        return tokenizer

    def _plan(
        self, inputs: Mapping[str, str], corpus: Corpus, tokenizer: Tokenizer
    ) -> tuple[int, Run]:
        """How many steps the given minutes are on this machine, found out by a short run.

        At a learning rate of 0 that run ends with the weights that the real one begins with, and
        so tells how those do on the held-out text.
        """
        fields = {
            "max_steps": PROBE_STEPS,
            "learning_rate": 0.0,
            "logging_steps": 5,
            "tags": ["demo-probe"],
        }
        with _step(self._console, "tokenize the text, and see how fast this machine trains"):
            accepted = self._client.train_run({**RECIPE, **inputs, **fields})
            probe = self._client.wait_for_run(accepted["run_id"], timeout=_PROBE_SECONDS)
        _check(f"run {probe['run_id']}", probe["status"], probe["message"])
        points = self._client.run_metrics(probe["run_id"])["points"]
        # The first steps are slower: memory is laid out, caches are cold.
        late = points[len(points) // 2 :]
        rate = statistics.median(point["tokens_per_sec"] or 0.0 for point in late)
        assert tokenizer["bytes_per_token"] is not None
        enough = MAX_EPOCHS * corpus["bytes"] / tokenizer["bytes_per_token"]
        tokens = min(rate * 60 * self._minutes, enough)
        self._console.print(f"  {short(rate)} tokens/s", style="dim")
        return max(1, round(tokens / (SEQ_LEN * BATCH_SIZE))), probe

    def _train(self, inputs: Mapping[str, str], steps: int) -> Run:
        fields = {"max_steps": steps, "eval_steps": max(1, steps // 4), "tags": ["demo"]}
        accepted = self._client.train_run({**RECIPE, **inputs, **fields})
        self._console.print(f"train a GPT-2: {accepted['run_id']}")
        run = follow(self._client, accepted["run_id"], self._console)
        _check(f"run {run['run_id']}", run["status"], run["message"])
        for line in summary(run):
            self._console.print(f"  {line}", markup=False)
        return run

    def _compare(self, untrained: Run, trained: Run) -> None:
        """The model before and after its training, on text that was held out of all training."""
        rows = []
        for label, run in (("before: untrained", untrained), ("after: trained", trained)):
            manifest = self._manifest(run["run_id"])
            loss = manifest["test_loss"]
            rows.append((label, loss, math.exp(loss), manifest["bits_per_byte"]))
        names = ("on held-out text", "loss (nats/token)", "perplexity", "bits per byte")
        self._console.print(table(names, rows), markup=False)

    def _manifest(self, run_id: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "manifest.json")
            self._client.download_artifact(run_id, path.name, path)
            manifest: dict[str, float] = json.loads(path.read_bytes())
        return manifest

    def _complete(self, run: Run) -> None:
        self._console.print("what it writes", style="bold")
        for prompt in PROMPTS:
            fields = {"prompt_text": prompt, "max_new_tokens": 64, "temperature": 0.7, "seed": 1}
            generated = self._client.generate(run["run_id"], fields)
            _check(f"the completion of {prompt!r}", generated["status"], generated["error"])
            # What a model writes is not markup.
            self._console.print(prompt, style="bold cyan", end="", markup=False)
            self._console.print(printable("".join(generated["outputs"] or ())), markup=False)
            self._console.rule(style="dim")


def _check(what: str, status: str, reason: str | None) -> None:
    if status != "completed":
        raise _Failed(f"{what} ended as {status}: {reason}")


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    """Say what is done, and how long it took; a terminal sees that it goes on."""
    started = time.monotonic()
    with console.status(what):
        yield
    console.print(f"{what}  [dim]{time.monotonic() - started:.1f} s[/dim]")


def _what_next(
    console: Console, stack: RunningStack, run: Run, data_root: Path, *, keep: bool
) -> None:
    folder = data_root / "artifacts" / "models" / run["run_id"]
    console.print("the model, in HuggingFace form", style="bold")
    console.print(f"  {folder}", markup=False)
    console.print("load it in Python", style="bold")
    console.print(
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"  tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})",
        markup=False,
    )
    console.print("what to try next", style="bold")
    trainer = _command(os.environ)
    if keep:
        where = f"TRAINER_URL={stack.api_url} "
        console.print(
            f"  the stack runs on: {stack.api_url}/docs; stop it: kill {stack.process.pid}"
        )
    else:
        where = ""
        console.print(f"  {trainer} up --data-root {shlex.quote(str(data_root))}", markup=False)
    console.print(f"  {where}{trainer} generate {run['run_id']} --prompt 'def '", markup=False)
    console.print(f"  {where}{trainer} corpora add YOUR_TEXT.txt", markup=False)


def _command(environment: Mapping[str, str]) -> str:
    """What to type for ``trainer``: its path where the shell would not find it by its name."""
    if shutil.which("trainer", path=environment.get("PATH", "")):
        return "trainer"
    path = Path(sys.executable).with_name("trainer")
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
