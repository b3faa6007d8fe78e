"""Token ids on disk: whole, split, made once."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.contracts import EOS_ID, BlockEncoder, Counts, Tokenizer
from backends.loading import load_tokenizer
from backends.tokenizers.blocks import EncodersDisagree, PieceByPiece
from trainer_app.core import encode, streams
from trainer_app.core.encode import Encoded, encode_corpus, while_it_stands
from trainer_app.core.observer import StopReason
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import StopRequested, never
from trainer_app.core.streams import Streams, split_streams

Write = Callable[[bytes], tuple[Path, str]]
RULE = SplitRule(seed=1, validation_fraction=0.1, test_fraction=0.2)


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, inner: Tokenizer, vocab_size: int | None = None) -> None:
        self.inner = inner
        self.vocab_size = vocab_size or inner.vocab_size
        self.kind = inner.kind
        self.texts = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.texts += len(texts)
        return self.inner.encode_batch(texts)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def block_encoder(self) -> BlockEncoder:
        return PieceByPiece(self.encode_batch)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)

    def token_text(self, token_id: int) -> str:
        return self.inner.token_text(token_id)

    def save(self, directory: Path) -> None:
        self.inner.save(directory)


@pytest.fixture
def tokenizer(tokenizer_directory: Path) -> Counting:
    return Counting(load_tokenizer(tokenizer_directory))


def encoded(
    written: tuple[Path, str],
    tokenizer: Tokenizer,
    root: Path,
    should_stop: Callable[[], StopReason | None] = never,
    on_message: Callable[[str], None] = print,
) -> Encoded:
    path, sha256 = written
    return encode_corpus(
        path,
        tokenizer,
        root,
        corpus_sha256=sha256,
        tokenizer_sha256="t" * 64,
        on_message=on_message,
        should_stop=should_stop,
    )


def test_ids_on_disk_are_those_of_the_whole_text(
    write_corpus: Write, tokenizer: Counting, story: Callable[[int], str], tmp_path: Path
) -> None:
    text = "def f(x):\n    return  x\n\n\n# ünï 日本\r\n\r\n" + story(40) + "\n    \n\tend"
    result = encoded(write_corpus(text.encode()), tokenizer, tmp_path / "tokens")
    assert result.ids().tolist() == tokenizer.encode(text)
    assert result.tokens == len(result.ids()) == result.counts().sum()
    assert result.bytes == len(text.encode()) == result.sizes().sum()
    assert result.dtype == "uint16"


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(
        st.sampled_from("ab1.'\n\n\n\r\t \u00a0\u3000\u2028é日") | st.characters(codec="utf-8"),
        min_size=1,
        max_size=80,
    ).filter(lambda text: text.strip() and "\0" not in text and not text.startswith("\ufeff"))
)
def test_cutting_any_text_into_units_does_not_change_its_ids(
    text: str, write_corpus: Write, tokenizer: Counting, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tokens")
    result = encoded(write_corpus(text.encode()), tokenizer, root)
    assert result.ids().tolist() == tokenizer.encode(text)


def test_a_corpus_is_tokenized_once_for_each_tokenizer(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    written = write_corpus(b"one\ntwo\n")
    first = encoded(written, tokenizer, tmp_path / "tokens")
    assert tokenizer.texts == 2
    written[0].unlink()  # not even read again
    assert encoded(written, tokenizer, tmp_path / "tokens") == first
    assert tokenizer.texts == 2


def test_a_large_vocabulary_takes_four_bytes_an_id(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    large = Counting(tokenizer.inner, vocab_size=65_537)
    result = encoded(write_corpus(b"one\ntwo\n"), large, tmp_path / "tokens")
    assert result.dtype == "uint32"
    assert result.ids().tolist() == tokenizer.encode("one\ntwo\n")


def test_several_at_once_end_with_one_result(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path, story: Callable[[int], str]
) -> None:
    written = write_corpus(story(100).encode())
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(encoded, written, tokenizer, tmp_path / "tokens") for _ in range(4)]
        results = [job.result() for job in jobs]
    assert all(result == results[0] for result in results)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_stop_leaves_nothing_behind(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    with pytest.raises(StopRequested):
        encoded(write_corpus(b"one\n"), tokenizer, tmp_path / "tokens", lambda: StopReason.CANCEL)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_a_live_one_is_left_alone(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    killed, live = (tmp_path / name for name in (".a-t.1.tmp", ".a-t.2.tmp"))
    for folder in (killed, live):
        folder.mkdir()
        (folder / "ids.bin").touch()
    for path in (killed / "ids.bin", killed, live):
        os.utime(path, (0, 0))

    encoded(write_corpus(b"one line\nand another\n"), tokenizer, tmp_path)

    assert (killed.exists(), live.exists()) == (False, True)


def test_a_file_where_writers_have_their_folders_is_left_alone(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    stray = tmp_path / ".stray.tmp"
    stray.write_text("not ours")
    os.utime(stray, (0, 0))
    encoded(write_corpus(b"one line\nand another\n"), tokenizer, tmp_path)
    assert stray.read_text() == "not ours"


def test_a_folder_that_cannot_be_renamed_is_an_error(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    written = write_corpus(b"one\n")
    root = tmp_path / "tokens"
    root.mkdir()
    (root / f"{written[1][:32]}-{'t' * 32}").write_text("a file stands there")
    with pytest.raises(NotADirectoryError):
        encoded(written, tokenizer, root)


class Wrong:
    """Gives ids at first, then finds that they are not those of the tokenizer."""

    name = "wrong"

    def __init__(self, inner: PieceByPiece) -> None:
        self.inner = inner
        self.blocks = 0

    def encode(
        self, data: bytes, sizes: NDArray[np.uint32], apart: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.uint32], Counts]:
        self.blocks += 1
        if self.blocks == 2:
            raise EncodersDisagree("wrong gives other ids for 'x'")
        ids, counts = self.inner.encode(data, sizes, apart)
        return ids[::-1], counts


class Mistaken(Counting):
    """Its block encoder is wrong."""

    def block_encoder(self) -> BlockEncoder:
        return Wrong(PieceByPiece(self.encode_batch))


def test_ids_of_an_encoder_that_is_found_wrong_are_all_made_anew_and_the_log_says_so(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path, story: Callable[[int], str]
) -> None:
    text = story(12_000)
    assert len(text) > 1 << 20
    messages: list[str] = []
    result = encoded(
        write_corpus(text.encode()),
        Mistaken(tokenizer.inner),
        tmp_path / "tokens",
        on_message=messages.append,
    )
    assert result.ids().tolist() == tokenizer.encode(text)
    (warning,) = (message for message in messages if message.startswith("WARNING"))
    assert "wrong gives other ids for 'x'; tokenizing anew with tokenizers" in warning
    assert messages[-1].endswith(" by tokenizers")
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_line_that_was_cut_is_encoded_in_its_parts_by_every_encoder(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    written = write_corpus(("abc" * 20_000 + "\nthe end\r").encode())
    plain = encoded(written, tokenizer, tmp_path / "plain")
    fast = encoded(written, tokenizer.inner, tmp_path / "fast")
    assert fast.counts().tolist() == plain.counts().tolist()
    assert fast.ids().tolist() == plain.ids().tolist()


def test_progress_is_told_while_a_long_corpus_is_tokenized(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "NEWS_SECONDS", 0.0)
    messages: list[str] = []
    encoded(write_corpus(b"one\n"), tokenizer, tmp_path / "tokens", on_message=messages.append)
    tokens = len(tokenizer.encode("one\n"))
    assert messages[0] == f"tokenizing: 0.0 MB, {tokens} tokens"
    assert messages[1].startswith(f"tokenized 0.0 MB into {tokens} tokens in ")
    assert messages[1].endswith(" by tokenizers")


@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_each_split_holds_its_own_texts_and_an_end_mark_after_each_run(
    write_corpus: Write,
    tokenizer: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(streams, "CHUNK_UNITS", chunk)
    written = write_corpus("".join(f"line {n * n}\n" for n in range(200)).encode())
    whole = encoded(written, tokenizer, tmp_path / "tokens")
    divided = split_streams(whole, RULE, should_stop=never)
    path, sha256 = written
    plan = plan_split(path, RULE, sha256=sha256, should_stop=never)
    for split in Split:
        texts = list(split_texts(path, plan, split, sha256=sha256, should_stop=never))
        stream = divided.of(split)
        assert stream.bytes == sum(len(text.encode()) for text in texts)
        assert tokenizer.decode(stream.ids.tolist()) == "".join(texts)
        assert stream.ids[-1] == EOS_ID
    labels = plan.assign(whole.hashes())
    runs = 1 + int((labels[1:] != labels[:-1]).sum())
    ends = sum(int((divided.of(split).ids == EOS_ID).sum()) for split in Split)
    assert ends == runs
    assert sum(len(divided.of(split)) for split in Split) == whole.tokens + runs


def test_a_split_is_made_once_and_an_empty_one_can_be_read(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    whole = encoded(write_corpus(b"one\ntwo\n"), tokenizer, tmp_path / "tokens")
    rule = SplitRule(seed=random.randrange(9), validation_fraction=0.0, test_fraction=0.0)
    divided = split_streams(whole, rule, should_stop=never)
    assert len(divided.test) == len(divided.validation) == 0
    assert divided.train.ids.tolist() == [*whole.ids().tolist(), EOS_ID]
    (whole.directory / "ids.bin").unlink()  # not read again
    again = split_streams(whole, rule, should_stop=never)
    assert np.array_equal(again.train.ids, divided.train.ids)
    assert json.loads((whole.directory / rule.name / "meta.json").read_text())["train"] == 8


def test_a_stop_while_splitting_leaves_nothing_behind(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    whole = encoded(write_corpus(b"one\ntwo\nthree\n"), tokenizer, tmp_path / "tokens")
    with pytest.raises(StopRequested):
        split_streams(whole, RULE, should_stop=lambda: StopReason.DRAIN)
    assert not any(path.is_dir() for path in whole.directory.iterdir())


def test_a_run_whose_token_ids_are_cleaned_away_while_it_opens_them_makes_them_again(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    corpus = write_corpus(b"one\ntwo\nthree\nfour\n" * 50)
    root = tmp_path / "tokens"
    encoded(corpus, tokenizer, root)
    cleaned: list[Path] = []

    def clean_up_once() -> StopReason | None:
        if not cleaned:
            cleaned.extend(root.iterdir())
            shutil.rmtree(cleaned[0])
        return None

    def read() -> Streams:
        found = encoded(corpus, tokenizer, root)
        return split_streams(found, RULE, should_stop=clean_up_once)

    found = while_it_stands(read, pytest.fail)
    assert cleaned
    assert len(found.train) > 0


def test_the_use_of_token_ids_is_written_down(
    write_corpus: Write, tokenizer: Counting, tmp_path: Path
) -> None:
    corpus = write_corpus(b"one\ntwo\n")
    directory = encoded(corpus, tokenizer, tmp_path / "tokens").directory
    os.utime(directory, (1.0, 1.0))
    encoded(corpus, tokenizer, tmp_path / "tokens")
    assert directory.stat().st_mtime > 1.0
