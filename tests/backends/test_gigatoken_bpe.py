"""The fast encoder gives the ids of tokenizers, and is not believed where it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import SPECIAL_TOKENS, BlockEncoder, Tokenizer
from backends.tokenizers import gigatoken_bpe
from backends.tokenizers.blocks import EncodersDisagree, PieceByPiece
from backends.tokenizers.bpe import BPETokenizer, pre_tokenizer
from backends.tokenizers.gigatoken_bpe import (
    GigatokenEncoder,
    gigatoken_encoder,
    with_gpt4_pattern,
)

pytest.importorskip("gigatoken")
from gigatoken import BytesSource
from gigatoken import Tokenizer as Gigatoken

ROOT = Path(__file__).parents[2]
PIECES = [
    *" \t\n\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000'.}1aZ\u00e9\u0301\u017f\u0130\u65e5\ufeff\0",
    *("\r\n", "'s", "'LL", "'\u017f", "def ", "    ", "1234567", "\U0001f468\u200d\U0001f469"),
    *SPECIAL_TOKENS,
]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8")).map("".join)


@pytest.fixture(scope="session")
def plain(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte-level BPE."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizers["bpe"].save(folder)
    return folder


@pytest.fixture
def huggingface(plain: Path) -> HuggingFaceTokenizer:
    """Its tokenizer.json in the library itself."""
    tokenizer = HuggingFaceTokenizer.from_file(str(plain / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def piece_by_piece(tokenizer: HuggingFaceTokenizer) -> PieceByPiece:
    return PieceByPiece(BPETokenizer(tokenizer).encode_batch)


def ids(encoder: BlockEncoder, *texts: str, apart: bool = True) -> list[list[int]]:
    """Of consecutive texts that are not empty."""
    raw = [text.encode() for text in texts]
    sizes = np.array([len(data) for data in raw], dtype=np.uint32)
    found, counts = encoder.encode(b"".join(raw), sizes, np.full(len(raw), apart))
    return [part.tolist() for part in np.split(found, np.cumsum(counts())[:-1])]


@pytest.fixture(scope="session")
def encoder(tokenizers: dict[str, Tokenizer]) -> BlockEncoder:
    return tokenizers["bpe"].block_encoder()


@settings(max_examples=300)
@given(texts=st.lists(TEXTS.filter(bool), min_size=1, max_size=4))
@example(texts=["[EOS][PAD] [UNK]\0\r\U0001f600"])
@example(texts=["a\r", "\nb", "'\u017f\r\n\r\n  \n x", "\r"])
def test_any_text_gives_the_ids_of_tokenizers(
    tokenizers: dict[str, Tokenizer], encoder: BlockEncoder, texts: list[str]
) -> None:
    assert encoder.name == "gigatoken"
    assert ids(encoder, *texts) == [tokenizers["bpe"].encode(text) for text in texts]


@given(TEXTS)
def test_lines_need_not_be_apart(
    tokenizers: dict[str, Tokenizer], encoder: BlockEncoder, text: str
) -> None:
    lines = f"x{text}".splitlines(True)
    joined = [lines[0]]
    for line in lines[1:]:  # as units are: cut behind "\n", before a line that is not blank
        if joined[-1].endswith("\n") and line.strip():
            joined.append(line)
        else:
            joined[-1] += line
    found = ids(encoder, *joined, apart=False)
    assert found == [tokenizers["bpe"].encode(text) for text in joined]


@pytest.mark.slow
def test_every_character_gives_the_ids_of_tokenizers(huggingface: HuggingFaceTokenizer) -> None:
    # all of the two planes where letters, digits and blanks are mixed, and a part of the others
    codes = [*range(1, 0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 41)]
    fast = Gigatoken.from_json(with_gpt4_pattern(huggingface))
    for start in range(0, len(codes), 50_000):
        characters = map(chr, codes[start : start + 50_000])
        lines = [f"a{c}b {c}1'{c}\n" for c in characters if c != "\r"]
        encoded = huggingface.encode_batch_fast(lines, add_special_tokens=False)
        expected = [token_id for encoding in encoded for token_id in encoding.ids]
        source = BytesSource("".join(lines).encode())
        row, _ = fast.encode_batch_padded(source, 0, parallel=False)
        assert np.array_equal(row[0], expected)


class Loads:
    """Counts how often the library is asked to load a tokenizer."""

    def __init__(self, load: Callable[[str], Gigatoken]) -> None:
        self.load = load
        self.count = 0

    def __call__(self, content: str) -> Gigatoken:
        self.count += 1
        return self.load(content)


def test_what_the_library_remembers_is_dropped_after_so_much_text(
    huggingface: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigatoken_bpe, "RENEW_BYTES", 3_000)
    loads = Loads(Gigatoken.from_json)
    plain = piece_by_piece(huggingface)
    encoder = GigatokenEncoder(loads, huggingface, plain)
    text = "one two three four five six seven\n" * 40
    for _ in range(6):
        assert ids(encoder, text) == ids(plain, text)
    assert loads.count > 3


def swapping(one: str, other: str) -> Callable[[str], Gigatoken]:
    """Load a tokenizer that takes one letter of its vocabulary for another."""

    def load(content: str) -> Gigatoken:
        parsed = json.loads(content)
        vocabulary = parsed["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        return Gigatoken.from_json(json.dumps(parsed))

    return load


def test_each_character_is_tried_before_it_is_believed(huggingface: HuggingFaceTokenizer) -> None:
    load = swapping("\u00c3", "\u00c4")  # the first bytes of U+00C0 and U+0100
    encoder = GigatokenEncoder(load, huggingface, piece_by_piece(huggingface))
    assert ids(encoder, "no such letter \u20ac") == [
        huggingface.encode("no such letter \u20ac").ids
    ]
    with pytest.raises(EncodersDisagree, match=r'gigatoken gives other ids for "a\\xe9b'):
        ids(encoder, "x" * 100_000 + "\u00e9")


@pytest.mark.parametrize("others", ["\u00a9", "\u20ac", "\u00a9\u00ae\u20ac\U0001f600"])
def test_each_of_the_new_characters_of_a_block_is_tried(
    huggingface: HuggingFaceTokenizer, others: str
) -> None:
    for apart in range(9):
        load = swapping("\u00c3", "\u00c4")  # as above
        encoder = GigatokenEncoder(load, huggingface, piece_by_piece(huggingface))
        with pytest.raises(EncodersDisagree, match=r'gigatoken gives other ids for "a\\u0101b'):
            ids(encoder, "x" * 100_000 + others + "x" * apart + "\u0101" + others)


def test_a_sample_of_every_block_is_compared(huggingface: HuggingFaceTokenizer) -> None:
    encoder = GigatokenEncoder(swapping("q", "z"), huggingface, piece_by_piece(huggingface))
    ids(encoder, "a line of letters\n" * 1_000)
    with pytest.raises(EncodersDisagree, match="gigatoken gives other ids for"):
        ids(encoder, "zq " * 10_000)


def test_pieces_that_tokens_span_are_found_out(
    tokenizers: dict[str, Tokenizer], encoder: BlockEncoder
) -> None:
    with pytest.raises(EncodersDisagree, match="do not end where"):
        ids(encoder, "se", "lf", apart=False)
    assert ids(encoder, "se", "lf") == tokenizers["bpe"].encode_batch(["se", "lf"])


def test_a_tokenizer_that_the_library_cannot_load_is_named(
    huggingface: HuggingFaceTokenizer,
) -> None:
    def load(_: str) -> Gigatoken:
        return Gigatoken.from_json("{}")

    encoder = GigatokenEncoder(load, huggingface, piece_by_piece(huggingface))
    with pytest.raises(EncodersDisagree, match="gigatoken cannot load the tokenizer: "):
        ids(encoder, "text")


def test_an_interruption_is_not_taken_for_a_tokenizer_that_cannot_be_loaded(
    huggingface: HuggingFaceTokenizer,
) -> None:
    class Interrupted(Exception):
        """What a signal may raise anywhere."""

    def load(_: str) -> Gigatoken:
        raise Interrupted

    encoder = GigatokenEncoder(load, huggingface, piece_by_piece(huggingface))
    with pytest.raises(Interrupted):
        ids(encoder, "text")


def with_normalizer(tokenizer: HuggingFaceTokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def with_other_words(tokenizer: HuggingFaceTokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def with_added_token(tokenizer: HuggingFaceTokenizer) -> None:
    tokenizer.add_tokens([AddedToken("def")])


def with_truncation(tokenizer: HuggingFaceTokenizer) -> None:
    tokenizer.enable_truncation(5)


@pytest.mark.parametrize(
    "change", [with_normalizer, with_other_words, with_added_token, with_truncation]
)
def test_a_tokenizer_of_another_form_is_left_to_tokenizers(
    change: Callable[[HuggingFaceTokenizer], None], huggingface: HuggingFaceTokenizer
) -> None:
    plain = piece_by_piece(huggingface)
    assert gigatoken_encoder(huggingface, plain, pre_tokenizer()) is not None
    change(huggingface)
    assert gigatoken_encoder(huggingface, plain, pre_tokenizer()) is None


def test_a_first_text_is_encoded_without_waiting_for_awkward(plain: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from backends.loading import load_tokenizer
        encoder = load_tokenizer(Path(sys.argv[1])).block_encoder()
        encoder.encode(b"text", np.array([4], np.uint32), np.array([True]))
        print(encoder.name, "awkward" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(plain)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "gigatoken False\n"


def test_without_the_library_tokenizers_encodes(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = tokenizers["bpe"].block_encoder()
    assert encoder.name == "tokenizers"
    assert ids(encoder, "def f", "(x)") == tokenizers["bpe"].encode_batch(["def f", "(x)"])
