"""Corpora that are too small, refused at the POST: never one that the engine itself would take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.loading import tokenizer_kind
from backends.registry import TOKENIZER_KINDS
from backends.vocabulary import most_tokens
from trainer_app.api.size_check import check_run_size, check_tokenizer_size
from trainer_app.core.batches import Batches
from trainer_app.core.corpus import read_units
from trainer_app.core.corpus_size import LONGEST_UNIT, CorpusSize
from trainer_app.core.data import prepare_data
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.core.stopping import never
from trainer_app.core.tokenizer_training import train_tokenizer
from trainer_app.errors import CorpusTooShort, FieldError, TokenizerTrainFailed

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from tests.api.conftest import World

    Body = dict[str, object]

# Few different characters: words that repeat, and lines that are equal. One of each size in UTF-8.
TEXTS = st.text("ab \n\té€\U0001f600", min_size=1, max_size=60).filter(lambda text: text.strip())
REPEATS = st.integers(1, 30)
FRACTIONS = st.sampled_from([0.0, 0.01, 0.15, 0.5])
FEW_FILES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def size_of(text: str) -> CorpusSize:
    """As an upload has it, see TextScan."""
    lines = text.count("\n") + (not text.endswith("\n"))
    return CorpusSize(bytes=len(text.encode()), lines=lines)


def is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except FieldError:
        return True
    return False


@cache
def tokenizer_directory(kind: str, folder: Path) -> Path:
    """Tokenizers that join little: the more tokens a text has, the closer it is to the bound."""
    directory = folder / kind
    directory.mkdir()
    sizes = {"bpe": 260, "sentencepiece": 263, "char": 5}
    trained = tokenizer_kind(kind).train(["z" * 50], vocab_size=sizes[kind], min_frequency=1)
    trained.save(directory)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def train_tokens(text: str, spec: TrainSpec, tokenizer: Path) -> int:
    """Of the training split; raises CorpusTooShort where a run would."""
    with TemporaryDirectory() as place:
        corpus = Path(place, "corpus.txt")
        corpus.write_text(text, newline="")
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        data = prepare_data(
            replace(spec, corpus_sha256=sha256),
            corpus=corpus,
            tokenizer_directory=tokenizer,
            scratch=Path(place, "scratch"),
            tokens=Path(place, "tokens"),
            on_message=lambda _: None,
            should_stop=never,
        )
        ids = data.streams.train.ids
        Batches(ids, seq_len=spec.max_seq_len, batch_size=1, accumulation=1, seed=0)
        return len(ids)


@FEW_FILES
@given(
    text=TEXTS,
    repeats=REPEATS,
    kind=st.sampled_from(sorted(TOKENIZER_KINDS)),
    holdout=FRACTIONS,
    test=FRACTIONS,
    seed=st.integers(0, 5),
    beyond=st.integers(-3, 3),
)
def test_no_run_is_refused_that_the_engine_would_begin(
    folder: Path,
    text: str,
    repeats: int,
    kind: str,
    holdout: float,
    test: float,
    seed: int,
    beyond: int,
) -> None:
    text *= repeats
    size = size_of(text)
    spec = TrainSpec(
        max_seq_len=max(1, size.bytes + beyond),  # about where the line is drawn
        holdout_fraction=holdout,
        test_split_ratio=test,
        seed=seed,
        corpus_sha256="",
    )
    refused = is_refused(lambda: check_run_size(spec, size))
    try:
        found = train_tokens(text, spec, tokenizer_directory(kind, folder))
    except CorpusTooShort:
        return
    assert not refused
    assert not is_refused(lambda: check_run_size(spec, CorpusSize(bytes=size.bytes)))
    assert found <= size.most_training_tokens


def test_the_bound_is_reached_so_that_no_closer_one_is_right(folder: Path) -> None:
    spec = TrainSpec(max_seq_len=40, holdout_fraction=0.0, test_split_ratio=0.0, corpus_sha256="")
    text = "abcd" * 10
    check_run_size(spec, size_of(text))
    assert train_tokens(text, spec, tokenizer_directory("bpe", folder)) == 41


@FEW_FILES
@given(text=TEXTS, repeats=REPEATS)
def test_no_text_has_more_units_than_its_size_allows(text: str, repeats: int) -> None:
    for whole in (text * repeats, text * repeats + "x" * (2 * LONGEST_UNIT + 1)):
        with TemporaryDirectory() as place:
            path = Path(place, "corpus.txt")
            path.write_text(whole, newline="")
            sha256 = hashlib.sha256(whole.encode()).hexdigest()
            units = sum(len(block.sizes) for block in read_units(path, sha256=sha256))
        assert units <= size_of(whole).most_units


@FEW_FILES
@given(
    text=TEXTS,
    repeats=REPEATS,
    method=st.sampled_from(sorted(TOKENIZER_KINDS)),
    vocab_size=st.integers(100, 400),
    min_frequency=st.integers(1, 5) | st.integers(1, 2_000),
    holdout=FRACTIONS,
)
def test_no_tokenizer_is_refused_that_can_be_trained(
    text: str,
    repeats: int,
    method: str,
    vocab_size: int,
    min_frequency: int,
    holdout: float,
) -> None:
    text *= repeats
    spec = TokenizerSpec(
        method=method,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        holdout_fraction=holdout,
        corpus_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    refused = is_refused(lambda: check_tokenizer_size(spec, size_of(text)))
    with TemporaryDirectory() as place:
        corpus = Path(place, "corpus.txt")
        corpus.write_text(text, newline="")
        try:
            train_tokenizer(
                spec,
                corpus,
                Path(place),
                sample_max_lines=10,
                on_message=lambda _: None,
                should_stop=lambda: False,
            )
        except (CorpusTooShort, TokenizerTrainFailed):
            return
    assert not refused


@FEW_FILES
@given(text=TEXTS, repeats=REPEATS, min_frequency=st.integers(1, 8))
def test_no_text_gives_a_byte_level_bpe_more_tokens_than_its_size_allows(
    text: str, repeats: int, min_frequency: int
) -> None:
    text *= repeats
    with pytest.raises(TokenizerTrainFailed) as failed:
        tokenizer_kind("bpe").train([text], vocab_size=10_000, min_frequency=min_frequency)
    reached = int(str(failed.value).partition("gives ")[2].split()[0])
    most = most_tokens(
        "bpe", vocab_size=10_000, text_bytes=len(text.encode()), min_frequency=min_frequency
    )
    assert most is not None
    assert reached <= most


def detail_of(response: TestResponse) -> tuple[str, str]:
    """Field and message of a refusal."""
    assert response.status_code == 422, response.text
    assert response.get_json()["code"] == "INVALID_INPUT"
    (detail,) = response.get_json()["details"]
    return detail["field"], detail["message"]


REACHED = (
    "8000 cannot be reached: with min_frequency 2 a corpus of 19 bytes gives at most {most} "
    "tokens: give more text, or set {least} to {most}"
)
SHORT = "one\ntwo\nthree\nfour\n"


def test_a_corpus_shorter_than_a_sequence_is_refused_with_the_numbers(
    client: FlaskClient, world: World, body: Body
) -> None:
    asked = body | {"corpus_path": world.corpus("short.txt", SHORT)}
    field, message = detail_of(client.post("/runs/train", json=asked))
    assert field == "max_seq_len"
    assert message == (
        "512 needs 513 tokens for training, and a corpus of 19 bytes has at most 20: give more "
        "text, or set 8 to 19"
    )
    assert client.get("/runs").get_json()["data"] == []
    assert client.post("/runs/train", json=asked | {"max_seq_len": 19}).status_code == 202


def test_an_upload_shorter_than_any_sequence_is_refused(client: FlaskClient, body: Body) -> None:
    made = client.post("/corpora", data=b"a\nb\nc", content_type="text/plain").get_json()
    asked = body | {"corpus_path": None, "corpus_file_id": made["file_id"]}
    _, message = detail_of(client.post("/runs/train", json=asked))
    assert message.endswith("a corpus of 5 bytes has at most 6: give more text")


def test_a_corpus_of_fewer_lines_than_splits_is_refused(
    client: FlaskClient, world: World, body: Body
) -> None:
    asked = body | {"corpus_path": world.corpus("line.txt", "one long line " * 100)}
    field, message = detail_of(client.post("/runs/train", json=asked))
    assert field == "corpus_path"
    assert message == (
        "the corpus has at most 1 different lines or paragraphs, but 3 splits need at least one "
        "each: give more text, or set holdout_fraction (0.01) or test_split_ratio (0.15) to 0"
    )
    whole = {"holdout_fraction": 0, "test_split_ratio": 0}
    assert client.post("/runs/train", json=asked | whole).status_code == 202


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (
            {"vocab_size": 8_000},
            "vocab_size",
            REACHED.format(most=278, least=260),
        ),
        (
            {"method": "sentencepiece", "vocab_size": 8_000},
            "vocab_size",
            REACHED.format(most=566, least=100),
        ),
        (
            {"method": "char", "min_frequency": 20},
            "min_frequency",
            "no character occurs 20 times in a corpus of 19 bytes: give more text, or set 1 to 19",
        ),
    ],
)
def test_a_vocabulary_that_no_text_of_the_size_gives_is_refused(
    client: FlaskClient, world: World, change: Body, field: str, message: str
) -> None:
    asked = {
        "method": "bpe",
        "vocab_size": 260,
        "corpus_path": world.corpus("short.txt", SHORT),
    }
    assert client.post("/tokenizers/train", json=asked).status_code == 202
    assert detail_of(client.post("/tokenizers/train", json=asked | change)) == (field, message)


@pytest.mark.parametrize(
    ("vocab_size", "text", "end"),
    [
        (100, "abc", "at most 54 tokens: give more text, or set {}"),
        (311, "abc", "at most 310 tokens: give more text, or set {}"),
        (150, "abcdef", "at most 102 tokens: give more text, or set 100 to 102, or {}"),
    ],
)
def test_a_vocabulary_below_the_least_of_its_kind_is_not_proposed(
    client: FlaskClient, world: World, vocab_size: int, text: str, end: str
) -> None:
    asked = {
        "method": "sentencepiece",
        "vocab_size": vocab_size,
        "min_frequency": 1,
        "holdout_fraction": 0,
        "corpus_path": world.corpus("short.txt", text),
    }
    _, message = detail_of(client.post("/tokenizers/train", json=asked))
    most = 262 + 16 * len(text)
    assert message.endswith(end.format(f"263 to {most} with the 256 bytes among them"))


def test_a_tokenizer_of_one_line_with_a_part_held_out_is_refused(
    client: FlaskClient, world: World
) -> None:
    asked = {"method": "bpe", "vocab_size": 260, "corpus_path": world.corpus("a.txt", "a line")}
    field, message = detail_of(client.post("/tokenizers/train", json=asked))
    assert (field, message.endswith("set holdout_fraction (0.01) to 0")) == ("corpus_path", True)
