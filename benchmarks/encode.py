"""Tokenizing and training a byte-level BPE: this engine against plain ``tokenizers``.

    python -m benchmarks.encode [--rounds 3] [--vocab-size 8192] [--corpus FILE] [--only encode]

The corpus is Python's own standard library unless a file is named. Each measurement has a process
of its own, and the sides take turns, so that whatever else the machine does hits both. Prints a
JSON line for each figure, then a table; figures are medians of the rounds. Megabytes are of UTF-8;
encoding is timed from the file of text to the memory-mapped file of ids, with what a process loads
for its first; memory is what the peak of the resident set lies above that of the process before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import AddedToken, decoders, models, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import SPECIAL_TOKENS
from backends.loading import load_tokenizer, tokenizer_kind
from backends.tokenizers.bpe import BYTE_LETTERS, pre_tokenizer
from trainer_app.core.corpus import read_units
from trainer_app.core.encode import encode_corpus
from trainer_app.core.files import sha256_file
from trainer_app.core.stopping import never

PIECE: Final = 1 << 14  # characters of a text of the peer's batches, its fastest
BATCH: Final = 64  # texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement."""

    work: str
    corpus: Path
    sha256: str  # of the corpus
    tokenizer: Path  # folder
    output: Path  # folder, empty
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one measurement gave."""

    seconds: float
    cpu_seconds: float  # of all threads
    peak_mb: float
    digest: str  # of the ids, or of the tokenizer.json


def encode_ours(job: Job) -> Path:
    encoded = encode_corpus(
        job.corpus,
        load_tokenizer(job.tokenizer),
        job.output,
        corpus_sha256=job.sha256,
        tokenizer_sha256="0" * 64,
        on_message=lambda message: print(message, flush=True),
        should_stop=never,
    )
    encoded.ids()
    return encoded.directory / "ids.bin"


def encode_tokenizers(job: Job) -> Path:
    tokenizer = HuggingFaceTokenizer.from_file(str(job.tokenizer / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    path = job.output / "ids.bin"
    with path.open("wb") as file:
        for batch in pieces(job.corpus):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                file.write(np.array(encoding.ids, dtype=np.uint16).data)
    np.memmap(path, dtype=np.uint16, mode="r")
    return path


def pieces(corpus: Path) -> Iterator[list[str]]:
    """The corpus in batches of texts that end where a line does that no blank one follows."""
    batch: list[str] = []
    text = ""
    with corpus.open(encoding="utf-8", newline="") as file:
        for line in file:
            if len(text) > PIECE and text.endswith("\n") and line.strip():
                batch.append(text)
                text = ""
            text += line
            if len(batch) == BATCH:
                yield batch
                batch = []
    yield [*batch, text]


def texts(corpus: Path, sha256: str) -> Iterator[str]:
    """Paragraphs or lines, as the trainers read them."""
    for block in read_units(corpus, sha256=sha256):
        yield from block.texts()


def train_ours(job: Job) -> Path:
    trained = tokenizer_kind("bpe").train(
        texts(job.corpus, job.sha256), vocab_size=job.vocab_size, min_frequency=2
    )
    trained.save(job.output)
    return job.output / "tokenizer.json"


def train_tokenizers(job: Job) -> Path:
    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=job.vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(BYTE_LETTERS),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(job.corpus, job.sha256), trainer)
    tokenizer.save(str(job.output / "tokenizer.json"))
    return job.output / "tokenizer.json"


def digest_of(path: Path) -> str:
    """Of ids, or of the content of a tokenizer.json, however it is laid out."""
    if path.suffix == ".bin":
        return sha256_file(path)
    content = json.loads(path.read_bytes())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


WORKS: Final[dict[str, Callable[[Job], Path]]] = {
    "encode, ours": encode_ours,
    "encode, tokenizers": encode_tokenizers,
    "train, ours": train_ours,
    "train, tokenizers": train_tokenizers,
}
KINDS: Final = ["encode", "train"]


def measure(job: Job) -> Figure:
    """Do the work, in a process of its own."""
    before = memory_mb("VmRSS")
    with suppress(OSError):  # forget the peak of what went before
        Path("/proc/self/clear_refs").write_text("5")
    began, cpu_began = time.perf_counter(), time.process_time()
    result = WORKS[job.work](job)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return Figure(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=memory_mb("VmHWM") - before,
        digest=digest_of(result),
    )


def memory_mb(key: str) -> float:
    """One of the kernel's figures of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1000
    raise KeyError(key)


def standard_library(path: Path) -> None:
    """Python's own modules, one after another, to a file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for module in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if "site-packages" not in module.parts:
                try:
                    file.write(module.read_text(encoding="utf-8").replace("\0", ""))
                except UnicodeDecodeError:  # some of its tests are in other encodings
                    continue


def compare(
    corpus: Path, rounds: int, vocab_size: int, works: list[str]
) -> dict[str, list[Figure]]:
    """The figures of each work, round by round."""
    figures: dict[str, list[Figure]] = {work: [] for work in works}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer")
        tokenizer.mkdir()
        trained = tokenizer_kind("bpe").train(
            texts(corpus, sha256_file(corpus)), vocab_size=vocab_size, min_frequency=2
        )
        trained.save(tokenizer)
        for number in range(rounds):
            for place, work in enumerate(works):
                output = Path(folder, f"{number}-{place}")
                output.mkdir()
                job = Job(
                    work=work,
                    corpus=corpus,
                    sha256=sha256_file(corpus),
                    tokenizer=tokenizer,
                    output=output,
                    vocab_size=vocab_size,
                )
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    figure = process.submit(measure, job).result()
                figures[work].append(figure)
                load = os.getloadavg()[0]
                print(json.dumps({"work": work, "load": load, **asdict(figure)}), flush=True)
    return figures


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--only", choices=KINDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = arguments.corpus
        if corpus is None:
            corpus = Path(folder, "stdlib.txt")
            standard_library(corpus)
        megabytes = corpus.stat().st_size / 1e6
        kinds = [arguments.only] if arguments.only else KINDS
        works = [work for work in WORKS if work.split(",")[0] in kinds]
        figures = compare(corpus, arguments.rounds, arguments.vocab_size, works)
    print(f"\n{megabytes:.1f} MB {'':14}{'MB/s':>10}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}")
    for work, results in figures.items():
        seconds = statistics.median(result.seconds for result in results)
        peak = statistics.median(result.peak_mb for result in results)
        cpu = statistics.median(result.cpu_seconds for result in results)
        print(f"{work:22}{megabytes / seconds:10.1f}{seconds:10.2f}{cpu:10.2f}{peak:10.0f}")
    for kind in kinds:
        ours, theirs = figures[f"{kind}, ours"], figures[f"{kind}, tokenizers"]
        ratios = [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]
        same = len({result.digest for result in (*ours, *theirs)}) == 1
        print(f"{kind}: {statistics.median(ratios):.1f} times as fast, the same result: {same}")


if __name__ == "__main__":
    main()
