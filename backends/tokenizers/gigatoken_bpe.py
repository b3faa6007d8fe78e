"""Byte-level BPE of much text by ``gigatoken``: dozens of times faster than ``tokenizers``.

``tokenizers`` stays the judge. Before ids are believed each character of the text is tried in
context by both, and of every block a sample; the first difference raises EncodersDisagree.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from backends.contracts import PAD_ID
from backends.tokenizers.blocks import EncodersDisagree, PieceByPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import gigatoken
    from numpy.typing import NDArray
    from tokenizers.pre_tokenizers import PreTokenizer

    from backends.contracts import Counts

# GPT-4's own pattern, which gigatoken has by hand. It differs from the BPE's pattern (bpe.PATTERN)
# only where a "\r" stands without a "\n" behind it: there "[\r\n]" could stop at a "\r".
GPT4_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# gigatoken remembers every word that it has met: seven bytes for each byte of a hostile text. Text
# after which it begins anew.
RENEW_BYTES: Final = 32 << 20
SAMPLE_BYTES: Final = 1 << 10  # of each block
# Each character of the text in every position that the pattern distinguishes.
PROBE: Final = "a{0}b {0}{0}1{0}\n{0}'{0} .{0}\r\n {0}  '{0}\t\n{0}"
CODE_POINTS: Final = 0x110000
_HIGH_BITS: Final = np.uint64(0x8080808080808080)
_MODEL_OPTIONS: Final = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


class GigatokenEncoder:
    """A BlockEncoder, see there, for the tokenizers that bpe.KIND trains."""

    name = "gigatoken"

    def __init__(
        self, load: Callable[[str], gigatoken.Tokenizer], tokenizer: Tokenizer, plain: PieceByPiece
    ) -> None:
        """``load`` reads a tokenizer.json, ``plain`` encodes by ``tokenizer`` itself."""
        from gigatoken import BytesSource  # noqa: PLC0415  # optional

        self._load = load
        self._source = BytesSource
        self._json = with_gpt4_pattern(tokenizer)
        self._plain = plain
        self._backend: gigatoken.Tokenizer | None = None
        self._left = 0  # bytes until the backend is renewed
        self._blocks = 0
        self._proven = np.zeros(CODE_POINTS, dtype=np.bool_)
        # bytes of each token: a letter of its name stands for one
        self._lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.uint32)
        for token, token_id in tokenizer.get_vocab().items():
            self._lengths[token_id] = len(token)

    def encode(
        self, data: bytes, sizes: NDArray[np.uint32], apart: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.uint32], Counts]:
        """See BlockEncoder."""
        ends = np.cumsum(sizes, dtype=np.uint32)
        borders = [0, *ends[:-1][apart[:-1]].tolist(), len(data)]
        parts = [data[start:end] for start, end in pairwise(borders)]
        if any(_lone_returns(part) for part in parts):
            return self._plain.encode(data, sizes, apart)
        self._try_characters(data)
        self._try_sample(data)
        ids = np.concatenate([self._ids(part) for part in parts])
        return ids, partial(self._counts, ids, ends, len(data))

    def _counts(
        self, ids: NDArray[np.uint32], ends: NDArray[np.uint32], size: int
    ) -> NDArray[np.uint32]:
        """How many of the ids each piece has; ``ends`` and ``size`` in bytes."""
        token_ends = np.cumsum(self._lengths.take(ids), dtype=np.uint32)
        last = np.searchsorted(token_ends, ends)  # token of each piece
        if len(ids) == 0 or token_ends[-1] != size or (token_ends[last] != ends).any():
            raise EncodersDisagree("gigatoken's tokens do not end where the text's pieces end")
        return np.diff(last, prepend=-1).astype(np.uint32)

    def _ids(self, text: bytes) -> NDArray[np.uint32]:
        if self._backend is None or self._left < len(text):
            self._backend = None  # frees what it remembers
            try:
                self._backend = self._load(self._json)
            except (
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:  # the library has no class for it
                raise EncodersDisagree(f"gigatoken cannot load the tokenizer: {error}") from error
            self._left = RENEW_BYTES
        self._left -= len(text)
        # One row of a padded batch: unlike ``encode`` this lets other threads run meanwhile. A
        # source, not a list: to tell a list from an array it would import awkward, for 0.15 s.
        # Not parallel: the library's own threads would not survive the fork of a worker's process.
        source = self._source(text)
        rows, _ = self._backend.encode_batch_padded(source, PAD_ID, parallel=False)
        row: NDArray[np.uint32] = rows[0]
        return row

    def _try_characters(self, data: bytes) -> None:
        """Raise EncodersDisagree for a character that the two take for something different."""
        if data.isascii():
            return
        # ASCII: by the tests, and the samples. Eight bytes at once, as most texts are most of it
        eights = np.frombuffer(data, dtype=np.uint64, count=len(data) // 8)
        some = eights[eights & _HIGH_BITS != 0].tobytes() + data[8 * len(eights) :]
        every = np.frombuffer(some, dtype=np.uint8)
        beyond = every[every >= 0x80].tobytes().decode()
        codes = np.frombuffer(beyond.encode("utf-32-le"), dtype="<u4")
        new = np.sort(codes[~self._proven[codes]])
        first = np.ones(len(new), dtype=np.bool_)
        first[1:] = new[1:] != new[:-1]
        new = new[first]  # np.unique would import numpy.ma, for 6 ms
        self._compare([PROBE.format(chr(code)) for code in new.tolist()])
        self._proven[new] = True

    def _try_sample(self, data: bytes) -> None:
        """Raise EncodersDisagree where the two read some place of the block differently."""
        self._blocks += 1
        start = self._blocks * 0x9E3779B1 % max(len(data) - SAMPLE_BYTES, 1)  # here and there
        sample = data[start : start + SAMPLE_BYTES].decode(errors="ignore").rstrip("\r")
        self._compare([sample] if sample else [])

    def _compare(self, texts: Sequence[str]) -> None:
        raw = [text.encode() for text in texts]
        sizes = np.fromiter(map(len, raw), dtype=np.uint32, count=len(raw))
        expected, counts = self._plain.encode(b"".join(raw), sizes, np.ones(len(raw), np.bool_))
        end = 0
        for text, data, count in zip(texts, raw, counts().tolist(), strict=True):
            start, end = end, end + count
            if not np.array_equal(self._ids(data), expected[start:end]):
                raise EncodersDisagree(f"gigatoken gives other ids for {text!a}")


def gigatoken_encoder(
    tokenizer: Tokenizer, plain: PieceByPiece, pre_tokenizer: PreTokenizer
) -> GigatokenEncoder | None:
    """The encoder, where gigatoken is installed and the tokenizer is of the one form for which its
    pattern is known to be the same: pre-tokenized by this, and with no step or option beside.
    """
    try:
        from gigatoken import Tokenizer as Gigatoken  # noqa: PLC0415  # optional
    except ImportError:
        return None
    return (
        GigatokenEncoder(Gigatoken.from_json, tokenizer, plain)
        if _suits(tokenizer, pre_tokenizer)
        else None
    )


def _suits(tokenizer: Tokenizer, pre_tokenizer: PreTokenizer) -> bool:
    model = tokenizer.model
    return (
        isinstance(model, models.BPE)
        and not any(getattr(model, name) for name in _MODEL_OPTIONS)
        and tokenizer.pre_tokenizer is not None
        and tokenizer.pre_tokenizer.__getstate__() == pre_tokenizer.__getstate__()
        and tokenizer.normalizer is None
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )


def with_gpt4_pattern(tokenizer: Tokenizer) -> str:
    """Its tokenizer.json for gigatoken, without the special tokens: in a text they are text."""
    copy = Tokenizer(tokenizer.model)
    copy.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return copy.to_str()


def _lone_returns(text: bytes) -> bool:
    return b"\r" in text and text.count(b"\r") != text.count(b"\r\n")
