"""sentencepiece: any text comes back, and its own library gives the same ids."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from backends.contracts import SPECIAL_TOKENS, UNK_ID, Tokenizer
from backends.loading import load_tokenizer
from backends.tokenizers.sentencepiece_bpe import FIXED, KIND, MODEL_FILE
from trainer_app.errors import ModelIncompatible, TokenizerTrainFailed

SPACE = "\u2581"
PIECES = [*" \t\n\n\r\0\x0b\x85\u2028\u2585'.}(=-1aeZ\u00e9\U0001f600", "\r\n", "def ", "    "]
PIECES += ["self", "----", "====", "[EOS]", "<0x0A>", "<s>", "00"]
TEXTS = st.text() | st.lists(
    st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=40
).map("".join)
# Few characters, many repetitions: where two ways to merge could disagree.
RUNS = st.text(st.sampled_from(" a=-0e\n"), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["sentencepiece"]


@pytest.fixture(scope="module")
def processor(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> SentencePieceProcessor:
    """sentencepiece's own, on the file that is published."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return SentencePieceProcessor(model_file=str(folder / MODEL_FILE))


@given(TEXTS | st.text(st.sampled_from(SPACE + "\u2585 a\n")))
@example("[EOS][PAD] [UNK]\0\r\n\t \u2581\u2585\U0001f600  ")
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token_id >= len(SPECIAL_TOKENS) for token_id in ids)


@settings(max_examples=300)
@given(TEXTS | RUNS)
def test_a_text_cut_at_any_line_end_keeps_its_ids(tokenizer: Tokenizer, text: str) -> None:
    encode = tokenizer.encode
    parts = [encode(line) for line in text.split("\n")]
    line_end = encode("\n")
    joined = [*parts[0], *(i for part in parts[1:] for i in (*line_end, *part))]
    assert joined == encode(text)


@settings(max_examples=500)
@given((TEXTS | RUNS).filter(lambda text: SPACE not in text))
def test_sentencepiece_gives_the_same_ids_and_the_same_text(
    tokenizer: Tokenizer, processor: SentencePieceProcessor, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert processor.Encode(text) == ids
    assert processor.Decode(ids) == text


def test_sentencepiece_gives_the_same_ids_to_the_corpus(
    tokenizer: Tokenizer, processor: SentencePieceProcessor, text: str
) -> None:
    assert processor.Encode(text) == tokenizer.encode(text)


def test_sentencepiece_finds_the_special_tokens_in_their_places(
    processor: SentencePieceProcessor,
) -> None:
    found = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    assert found == (0, 1, 2, 3)
    assert [processor.IdToPiece(token_id) for token_id in range(262)] == list(FIXED)


def test_sentencepiece_takes_its_sign_for_a_space_where_ours_keeps_it(
    tokenizer: Tokenizer, processor: SentencePieceProcessor
) -> None:
    assert processor.Encode(SPACE) == processor.Encode(" ")
    assert tokenizer.decode(tokenizer.encode(f"a{SPACE} b")) == f"a{SPACE} b"


def test_the_same_texts_give_the_same_bytes_in_any_process_and_folder(
    tmp_path: Path, text: str
) -> None:
    corpus = tmp_path / "corpus.py"
    corpus.write_text(text)
    code = (
        "import sys; from pathlib import Path; "
        "from backends.tokenizers.sentencepiece_bpe import KIND; "
        "texts = Path(sys.argv[1]).read_text().splitlines(True); "
        "KIND.train(texts, vocab_size=400, min_frequency=2).save(Path(sys.argv[2]))"
    )
    saved = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(corpus), str(folder)],
            check=True,
            timeout=100,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed, "TMPDIR": str(folder)},
        )
        saved.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert saved[0] == saved[1]
    assert len(saved[0]) == 3


def test_merges_make_words_and_indentation_of_characters(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.vocab_size == 600
    assert len(tokenizer.encode(text)) < len(text) / 2
    pieces = {tokenizer.token_text(token_id) for token_id in range(600)}
    assert {"self", "        ", " the", "\n", "\t", "\\xff"} < pieces
    assert not any(sum(map(str.isdigit, piece)) > 1 for piece in pieces if len(piece) < 4)


def test_a_part_of_a_character_is_readable(tokenizer: Tokenizer) -> None:
    parts = [tokenizer.token_text(token_id) for token_id in tokenizer.encode("\U0001f600")]
    assert parts == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    assert tokenizer.token_text(tokenizer.encode(" ")[0]) == " "


def test_bytes_that_are_no_text_become_one_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f600")
    assert tokenizer.decode(ids[:-1]) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("around", "characters"),
    [
        ("\t{}\t", 4),
        ("{}\r", 5),
        ("\u2585{}", 4),
        ("\u2581{}\0", 4),
        ("{}\n\n", 4),
        ("1{}2", 6),
        ("\x1f{}\x1f", 4),
    ],
)
def test_what_stands_beside_a_word_does_not_keep_it_from_being_learned(
    around: str, characters: int
) -> None:
    size = len(FIXED) + characters + 3
    learned = KIND.train([around.format("word")] * 9, vocab_size=size, min_frequency=9)
    assert "word" in [learned.token_text(i) for i in learned.encode("word")]


def test_a_line_of_any_length_is_learned_from() -> None:
    learned = KIND.train(["abcd" * 100_000], vocab_size=269, min_frequency=2)
    assert len(learned.encode("abcd" * 100)) == 100


def test_rare_characters_are_spelled_in_bytes() -> None:
    texts = ["common words " * 1_000, "\u00e9\u00e9", "\u00fc"]
    for frequency in (1, 3):
        learned = KIND.train(texts, vocab_size=275, min_frequency=frequency)
        assert len(learned.encode("\u00e9")) == 2
        assert learned.decode(learned.encode("\u00e9\u00fc")) == "\u00e9\u00fc"


def test_characters_rarer_than_the_least_frequency_are_spelled_in_bytes() -> None:
    texts = ["ab" * 50, "\u00e9\u00fc\u00e9"]
    twice = KIND.train(texts, vocab_size=265, min_frequency=2)
    assert (len(twice.encode("\u00e9")), len(twice.encode("\u00fc"))) == (1, 2)
    once = KIND.train(texts, vocab_size=266, min_frequency=1)
    assert (len(once.encode("\u00e9")), len(once.encode("\u00fc"))) == (1, 1)


@pytest.mark.parametrize("texts", [[], ["", "\n\t"], ["abc"]])
def test_a_corpus_that_gives_no_character_is_refused(texts: list[str]) -> None:
    with pytest.raises(TokenizerTrainFailed, match="no character occurs 2 times"):
        KIND.train(texts, vocab_size=300, min_frequency=2)


def test_more_characters_than_the_vocabulary_holds_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        TokenizerTrainFailed, match=r"vocab_size 264 .* 3 characters of this corpus need 265"
    ):
        KIND.train(["abc"], vocab_size=264, min_frequency=1)
    assert KIND.train(["abc"], vocab_size=265, min_frequency=1).vocab_size == 265


def test_a_vocabulary_that_the_corpus_cannot_give_is_refused_with_what_it_gives() -> None:
    message = (
        r"vocab_size 5000 cannot be reached: with min_frequency 2 this corpus gives 270 tokens"
    )
    with pytest.raises(TokenizerTrainFailed, match=message):
        KIND.train(["abcd abcd xyz"], vocab_size=5000, min_frequency=2)
    assert KIND.train(["abcd abcd xyz"], vocab_size=270, min_frequency=2).vocab_size == 270


def reaches(texts: list[str], vocab_size: int) -> bool:
    """Whether a vocabulary of the size can be trained."""
    try:
        return KIND.train(texts, vocab_size=vocab_size, min_frequency=2).vocab_size == vocab_size
    except TokenizerTrainFailed:
        return False


@pytest.mark.parametrize("words", [12, 40])
def test_each_vocabulary_of_the_ranges_that_a_refusal_names_is_reached_and_none_beside(
    words: int,
) -> None:
    random = Random(words)
    known = ["".join(random.choices("abcdefgh", k=5)) for _ in range(words)]
    texts = [" ".join(random.choices(known, k=8)) for _ in range(200)]
    with pytest.raises(TokenizerTrainFailed) as refused:
        KIND.train(texts, vocab_size=250, min_frequency=2)
    asked = str(refused.value).partition("; ask for ")[2].partition(" with the 256 bytes among")[0]
    named = [(int(low), int(high)) for low, high in re.findall(r"(\d+) to (\d+)", asked)]
    assert [low for low, _ in named] == ([271] if words == 12 else [100, 271])
    for low, high in named:
        assert all(reaches(texts, size) for size in (low, (low + high) // 2, high))
        assert not any(reaches(texts, size) for size in (low - 1, high + 1) if size >= 100)


NAMED = [*SPECIAL_TOKENS, "<0x41>", "<0x0A>", "<0xZZ>", "<s>", "[", "<", "x", "0", "OS]", " ", "\n"]
NAMED += ["\x1f", "\u2581"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(NAMED), min_size=1, max_size=30).map("".join))
@example("[PAD] [UNK] [BOS] [EOS] <s> </s> <unk> <0x41>\n" * 2)
def test_a_corpus_of_names_of_special_tokens_and_bytes_is_text_like_any_other(text: str) -> None:
    with pytest.raises(TokenizerTrainFailed) as refused:
        KIND.train([text], vocab_size=5_000, min_frequency=1)
    asked = re.findall(r"(\d+) to (\d+)", str(refused.value))
    assert all(int(low) <= int(high) for low, high in asked)
    for size in {int(size) for sizes in asked for size in sizes}:
        learned = KIND.train([text], vocab_size=size, min_frequency=1)
        assert learned.vocab_size == size
        if size > len(FIXED):
            assert learned.decode(learned.encode(text)) == text
            assert not {*map(learned.token_text, range(len(FIXED), size))} & {*FIXED}


def test_pieces_rarer_than_the_least_frequency_do_not_count() -> None:
    message = "with min_frequency 3 this corpus gives 267 tokens"
    with pytest.raises(TokenizerTrainFailed, match=message):
        KIND.train(["abab", "cd", "ab", "cd", "d", "c"], vocab_size=268, min_frequency=3)


def test_a_finished_tokenizer_is_used_without_the_library(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    code = (
        "import sys; sys.modules['sentencepiece'] = None; from pathlib import Path; "
        "from backends.loading import load_tokenizer; "
        "print(load_tokenizer(Path(sys.argv[1])).encode('def self'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == tokenizer.encode("def self")


def test_a_folder_without_its_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(ModelIncompatible, match=r"tokenizer\.model cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda piece: "\n " if piece == "  " else piece, "the piece '\\\\n ' spans more than"),
        (lambda piece: "\r" if piece == "\t" else piece, "begins with other pieces"),
    ],
)
def test_pieces_of_another_making_are_refused(
    change: Callable[[str], str], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {change(piece): place for piece, place in vocabulary.items()}
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ModelIncompatible, match=message):
        load_tokenizer(tmp_path)


WORDS = ["the king had three daughters, and the king was old", "the old king said: go"] * 3
UNSEEN = "\u00e9\U0001f600xz"
SMALL = st.text(st.sampled_from("thekingoldsa,: \n\t\u00e9\U0001f600xz"), max_size=40)


@pytest.fixture(scope="module", params=[30, 44])
def small(request: pytest.FixtureRequest) -> Tokenizer:
    """One with fewer tokens than there are bytes."""
    size: int = request.param
    return KIND.train(WORDS, vocab_size=size, min_frequency=2)


def test_a_small_vocabulary_is_reached_exactly_and_knows_its_corpus(small: Tokenizer) -> None:
    assert small.vocab_size in {30, 44}
    for text in WORDS:
        ids = small.encode(text)
        assert UNK_ID not in ids
        assert small.decode(ids) == text


@given(SMALL)
@example("\u00e9\U0001f600k\u00e9 \u00e9\n\u00e9")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_without_room_for_bytes_what_has_no_piece_is_unknown(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == "".join(c for c in text if c not in UNSEEN)
    assert small.encode("k\u00e9\u00e9k").count(UNK_ID) == 1  # one for all that stand together


def test_a_small_one_gives_the_same_ids_in_all_libraries(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    own = SentencePieceProcessor(model_file=str(tmp_path / MODEL_FILE))
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    @given(SMALL)
    def check(text: str) -> None:
        ids = small.encode(text)
        assert own.EncodeAsIds(text) == again.encode(text) == theirs(text)["input_ids"] == ids

    check()


def test_an_ordinary_corpus_gives_the_pieces_that_it_has_always_given() -> None:
    learned = KIND.train(WORDS, vocab_size=44, min_frequency=2)
    pieces = [learned.token_text(token_id) for token_id in range(6, 44)]
    merged = "th|in| k|ing|the| king|ld| o| old|ad|ai|an|as|au|ee|er|gh|go| d| h"
    assert "|".join(pieces) == merged + "| |d|e|h|a|g|t|i|n|k|o|s|l|r|,|:|u|w"


def test_of_more_characters_than_a_small_one_holds_the_rarest_are_unknown() -> None:
    tokenizer = KIND.train(["aaaa bbb cc d"], vocab_size=9, min_frequency=1)
    assert tokenizer.vocab_size == 9
    assert [tokenizer.encode(c).count(UNK_ID) for c in "ab cd"] == [0, 0, 0, 1, 1]


def test_one_that_spells_in_bytes_without_pieces_for_them_is_refused(
    small: Tokenizer, tmp_path: Path
) -> None:
    small.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["byte_fallback"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(ModelIncompatible, match="begins with other pieces"):
        load_tokenizer(tmp_path)
