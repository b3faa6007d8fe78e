"""Tokenizers trained on one part of a corpus and measured on the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.loading import load_tokenizer
from backends.registry import TOKENIZER_KINDS
from trainer_app.core.spec import TokenizerSpec
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import never
from trainer_app.core.tokenizer_training import TokenizerReport, measure, train_tokenizer
from trainer_app.errors import TokenizerTrainFailed

Write = Callable[[bytes], tuple[Path, str]]


def train(
    written: tuple[Path, str],
    directory: Path,
    *,
    method: str = "bpe",
    holdout: float = 0.2,
    vocab_size: int = 300,
    sample_max_lines: int = 10_000,
    stop_after: int = 1_000_000,
) -> TokenizerReport | None:
    path, sha256 = written
    directory.mkdir()
    spec = TokenizerSpec(
        method=method,
        vocab_size=vocab_size,
        min_frequency=1,
        corpus_sha256=sha256,
        holdout_fraction=holdout,
    )
    assert TokenizerSpec.from_json(spec.to_json()) == spec
    questions = iter(range(stop_after))
    return train_tokenizer(
        spec,
        path,
        directory,
        sample_max_lines=sample_max_lines,
        on_message=print,
        should_stop=lambda: next(questions, None) is None,
    )


@pytest.mark.parametrize("method", TOKENIZER_KINDS)
def test_a_tokenizer_is_written_and_measured(
    write_corpus: Write, story: Callable[[int], str], tmp_path: Path, method: str
) -> None:
    report = train(write_corpus(story(60).encode()), tmp_path / "out", method=method)
    assert report is not None
    loaded = load_tokenizer(tmp_path / "out")
    assert report.vocab_size == loaded.vocab_size
    assert report.coverage is not None
    assert 0.99 < report.coverage <= 1.0
    assert report.oov_rate == pytest.approx(1 - report.coverage)
    assert report.token_count is not None
    assert report.bytes_per_token is not None
    assert report.bytes_per_token >= 1.0
    assert json.loads(report.to_json())["token_count"] == report.token_count


@pytest.mark.parametrize("method", TOKENIZER_KINDS)
def test_equal_specs_give_equal_bytes(
    write_corpus: Write, story: Callable[[int], str], tmp_path: Path, method: str
) -> None:
    written = write_corpus(story(60).encode())
    for name in ("one", "two"):
        train(written, tmp_path / name, method=method)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_held_out_characters_are_unknown_to_a_char_tokenizer(
    write_corpus: Write, tmp_path: Path
) -> None:
    # each line has a character of its own: none of those held out is known
    lines = "".join(f"aaaaaaaaa{chr(0x4E00 + n)}\n" for n in range(200))
    written = write_corpus(lines.encode())
    report = train(written, tmp_path / "out", method="char")
    assert report is not None
    assert report.oov_rate == pytest.approx(1 / 11)
    assert report.coverage == pytest.approx(10 / 11)
    assert report.char_coverage == pytest.approx(10 / 11)
    rule = SplitRule(seed=42, validation_fraction=0.2, test_fraction=0.0)
    plan = plan_split(written[0], rule, sha256=written[1], should_stop=never)
    held_out = list(
        split_texts(written[0], plan, Split.VALIDATION, sha256=written[1], should_stop=never)
    )
    assert report.token_count == 11 * len(held_out)


def test_the_sample_is_bounded(write_corpus: Write, tmp_path: Path) -> None:
    written = write_corpus("".join(f"line {n}\n" for n in range(400)).encode())
    small = train(written, tmp_path / "small", method="char", sample_max_lines=2)
    large = train(written, tmp_path / "large", method="char")
    assert small is not None
    assert large is not None
    assert (small.token_count or 0) <= 18 < (large.token_count or 0)


def test_without_held_out_text_there_are_no_figures(write_corpus: Write, tmp_path: Path) -> None:
    report = train(write_corpus(b"some text\n"), tmp_path / "out", method="char", holdout=0.0)
    assert report is not None
    assert (report.coverage, report.oov_rate, report.token_count) == (None, None, None)


@pytest.mark.parametrize("questions", [0, 1, 2])
def test_a_stop_ends_it_at_any_stage(
    write_corpus: Write, story: Callable[[int], str], tmp_path: Path, questions: int
) -> None:
    written = write_corpus(story(60).encode())
    assert train(written, tmp_path / "out", stop_after=questions) is None


def test_a_corpus_that_cannot_give_the_vocabulary_is_refused(
    write_corpus: Write, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerTrainFailed, match="vocab_size 4000"):
        train(write_corpus(b"one\ntwo\n"), tmp_path / "out", vocab_size=4000)


def test_figures_are_of_all_batches(tokenizer_directory: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_directory)
    report = measure(tokenizer, (f"line {n}\n" for n in range(2_500)))
    assert report.token_count == sum(len(tokenizer.encode(f"line {n}\n")) for n in range(2_500))
