"""What holds for the tokenizers of every kind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from backends.contracts import SPECIAL_TOKENS, UNK_ID, BlockEncoder, Tokenizer
from backends.loading import load_tokenizer, tokenizer_kind
from backends.registry import MIN_VOCAB_SIZES, TOKENIZER_KINDS
from backends.tokenizers import huggingface
from trainer_app.errors import FieldError, ModelIncompatible, TokenizerTrainFailed

KINDS = sorted(TOKENIZER_KINDS)
SAVED_FILES = {kind: ["tokenizer.json", "tokenizer_config.json"] for kind in KINDS}
SAVED_FILES["sentencepiece"].insert(1, "tokenizer.model")
AWKWARD = "[EOS] a[BOS][PAD]\0\r\n\n  \t\r x\u00e9\u0301\U0001f600\u2028\ufeff"
# Texts as people write them and as they do not.
PIECES = [*" \t\r\n\0[]'.,aZ1\u00e9\U0001f600", *SPECIAL_TOKENS]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def encoders(tokenizers: dict[str, Tokenizer]) -> dict[str, BlockEncoder]:
    return {kind: tokenizer.block_encoder() for kind, tokenizer in tokenizers.items()}


def test_the_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(token_id) for token_id in range(4)] == list(SPECIAL_TOKENS)


def test_ids_lie_within_the_vocabulary(tokenizer: Tokenizer, text: str) -> None:
    assert max(tokenizer.encode(text)) < tokenizer.vocab_size <= 600


def test_a_text_of_the_corpus_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert UNK_ID not in ids
    assert tokenizer.decode(ids) == text


def test_the_names_of_special_tokens_are_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert set(ids) & {0, 2, 3} == set()
    assert tokenizer.decode([2, *tokenizer.encode("def"), 3, 0]) == "def"


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, max_size=4))
def test_a_batch_gives_the_ids_of_its_texts(
    kind: str, texts: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_bytes_whatever_the_threads(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        texts = iter(text.splitlines(True))
        trained = tokenizer_kind(kind).train(texts, vocab_size=400, min_frequency=2)
        trained.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == SAVED_FILES[kind]
        saved.append([(tmp_path / name).read_bytes() for name in SAVED_FILES[kind]])
    assert saved[0] == saved[1]


def test_a_saved_tokenizer_comes_back_the_same(
    tokenizer: Tokenizer, text: str, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    for sample in (text, AWKWARD):
        assert loaded.encode(sample) == tokenizer.encode(sample)
        assert loaded.decode(loaded.encode(sample)) == tokenizer.decode(tokenizer.encode(sample))
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    for name in SAVED_FILES[tokenizer.kind]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_ids_and_the_same_text(
    kind: str, text: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers[kind].save(tmp_path)
    ours, theirs = tokenizers[kind], AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (0, 1)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (2, 3)
    assert len(theirs) == ours.vocab_size

    @given(TEXTS)
    def check(sample: str) -> None:
        ids = ours.encode(sample)
        assert theirs(sample)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)

    check()
    assert theirs(text)["input_ids"] == ours.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_registry_knows_the_smallest_vocabulary(kind: str) -> None:
    assert tokenizer_kind(kind).min_vocab_size == MIN_VOCAB_SIZES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_reached_is_refused_with_the_numbers(kind: str) -> None:
    least = tokenizer_kind(kind).min_vocab_size
    with pytest.raises(TokenizerTrainFailed, match=f"vocab_size {least - 1} .* need {least}"):
        tokenizer_kind(kind).train(["a"], vocab_size=least - 1, min_frequency=1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_while_the_texts_are_read_is_passed_on(kind: str) -> None:
    def texts() -> Iterator[str]:
        yield "abc"
        raise InterruptedError("stopped")

    with pytest.raises(InterruptedError, match="stopped"):
        tokenizer_kind(kind).train(texts(), vocab_size=1000, min_frequency=1)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"trainer_tokenizer_kind": "wordpiece"}']
)
def test_a_folder_without_a_known_kind_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelIncompatible, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", "\xff"])
def test_a_damaged_tokenizer_is_refused(
    content: str | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(ModelIncompatible, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


FILES = [(kind, name) for kind in KINDS for name in SAVED_FILES[kind]]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_fifo_a_device_or_a_folder_in_the_place_of_a_file_is_refused(
    kind: str, name: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers[kind].save(tmp_path)
    path = tmp_path / name
    for instead in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        path.unlink()
        instead(path)
        with pytest.raises(ModelIncompatible, match=rf"{name} cannot be read: .* not a plain file"):
            load_tokenizer(tmp_path)
        if path.is_dir():
            path.rmdir()
            path.touch()


def test_a_file_larger_than_any_tokenizers_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    monkeypatch.setattr(huggingface, "LARGEST", 100)
    with pytest.raises(ModelIncompatible, match=r"tokenizer\.json has more than 100 bytes"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("token_id", [2**31, 2**32 - 1, 599, 601, 3])
def test_ids_with_a_gap_are_refused(
    token_id: int, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers["bpe"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    (last,) = (token for token, place in vocabulary.items() if place == 598)
    vocabulary[last] = token_id
    path.write_text(json.dumps(content))
    with pytest.raises(ModelIncompatible, match=r"tokenizer\.json: the ids of its 600 tokens are"):
        load_tokenizer(tmp_path)


# one that comes between the opening of a file and its holder leaves it to the garbage collector
@pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    class Interrupted(Exception):
        """What a signal may raise anywhere."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    characters = (chr(code) for code in range(0x4E00, 0x4E00 + 20_000))
    big = tokenizer_kind("char").train(characters, vocab_size=30_000, min_frequency=1)
    big.save(tmp_path)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for milliseconds in range(1, 12):
            with pytest.raises(Interrupted):
                _interrupted_after(milliseconds / 1_000, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)


def _interrupted_after(seconds: float, directory: Path) -> None:
    """Load again and again until the time is over: most of it passes inside the library."""
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should a destructor swallow it
    try:
        while True:
            load_tokenizer(directory)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


@pytest.mark.parametrize(("kind", "other"), list(permutations(KINDS, 2)))
def test_a_tokenizer_of_another_kind_is_refused(
    kind: str, other: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers[other].save(tmp_path)
    with pytest.raises(
        ModelIncompatible, match=r"tokenizer\.json holds a \w+( with [\w-]+ fall-back)?, not a"
    ):
        tokenizer_kind(kind).load(tmp_path)


def test_special_tokens_of_other_ids_are_refused(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers["char"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("EOS", "END")
    content["model"]["vocab"]["[END]"] = content["model"]["vocab"].pop("[EOS]")
    path.write_text(json.dumps(content))
    with pytest.raises(ModelIncompatible, match=r"\[EOS\] has not the id 3"):
        load_tokenizer(tmp_path)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FieldError, match="method: 'wordpiece' is not one of bpe, "):
        tokenizer_kind("wordpiece")


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS.filter(bool), min_size=1, max_size=4))
def test_blocks_give_the_ids_of_their_pieces(
    kind: str, texts: list[str], tokenizers: dict[str, Tokenizer], encoders: dict[str, BlockEncoder]
) -> None:
    raw = [text.encode() for text in texts]
    sizes = np.array([len(data) for data in raw], dtype=np.uint32)
    ids, counts = encoders[kind].encode(b"".join(raw), sizes, np.ones(len(raw), dtype=np.bool_))
    encoded = tokenizers[kind].encode_batch(texts)
    assert counts().tolist() == [len(found) for found in encoded]
    assert ids.tolist() == [token_id for found in encoded for token_id in found]
